"""The etcd keys of a run. `state/` flows down to every agent, `reports/` flows up to the leader.

No key that every node writes is watched by every node: that would be n² events (1.6 million per change at 1280
nodes).
"""

from __future__ import annotations

from dataclasses import dataclass

from instep.names import check_namespace, check_run_name


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run below its namespace. Checks the names: no key can leave its run."""

    namespace: str
    run: str

    def __post_init__(self) -> None:
        check_namespace(self.namespace)
        check_run_name(self.run)

    @property
    def root(self) -> str:
        return f"{self.namespace}/{self.run}/"

    # -- written by operators -------------------------------------------------------------------------------------

    @property
    def desires(self) -> str:
        """Prefix of `changes/`, `checkpoints/`, `commands/` and `config/` together: in one watch, a put and its author
        arrive together."""
        return f"{self.root}c"

    @property
    def config(self) -> str:
        """Prefix: one key per hyperparameter, with its desired value as one JSON scalar."""
        return f"{self.root}config/"

    def config_of(self, name: str) -> str:
        return f"{self.config}{name}"

    @property
    def changes(self) -> str:
        """Prefix: author and reason of a put, written in the same transaction."""
        return f"{self.root}changes/"

    def change(self, change_id: str) -> str:
        return f"{self.changes}{change_id}"

    @property
    def commands(self) -> str:
        """Prefix: what all ranks do before the same step. A decision deletes the key of its command."""
        return f"{self.root}commands/"

    def command(self, command_id: str) -> str:
        return f"{self.commands}{command_id}"

    @property
    def schema(self) -> str:
        """JSON Schema of the hyperparameters of the current view."""
        return f"{self.root}schema"

    # -- counted across restarts -----------------------------------------------------------------------------------

    @property
    def attempts(self) -> str:
        """How often the run has failed, and how: written by the leader and by `instep reset`."""
        return f"{self.root}attempts"

    # -- checkpoints: written by the leader ------------------------------------------------------------------------

    @property
    def checkpoints(self) -> str:
        """Prefix: one manifest per committed checkpoint, and `latest`."""
        return f"{self.root}checkpoints/"

    def checkpoint(self, checkpoint_id: str) -> str:
        return f"{self.checkpoints}{checkpoint_id}"

    @property
    def latest(self) -> str:
        return f"{self.checkpoints}latest"

    @property
    def saving(self) -> str:
        """The checkpoint that is being written, as its saver announced it."""
        return f"{self.state}saving"

    @property
    def saved(self) -> str:
        """The same pointer as `latest`, written in the same transaction: this one is watched, `latest` is read."""
        return f"{self.state}saved"

    @property
    def resume(self) -> str:
        """The checkpoint that is offered to the ranks of the view, or from which they have agreed to resume."""
        return f"{self.state}resume"

    @property
    def verified(self) -> str:
        """Prefix: what the ranks of a node found in the offered checkpoint."""
        return f"{self.root}reports/verified/"

    def verified_of(self, node: str) -> str:
        return f"{self.verified}{node}"

    def readers(self, checkpoint_id: str) -> str:
        """Prefix: nodes with a rank that reads the checkpoint, each on its lease. Such a checkpoint is not
        forgotten."""
        return f"{self.root}reports/readers/{checkpoint_id}/"

    def reader(self, checkpoint_id: str, node: str) -> str:
        return f"{self.readers(checkpoint_id)}{node}"

    # -- election -------------------------------------------------------------------------------------------------

    @property
    def election(self) -> str:
        """Prefix of the candidates. The slash at the end keeps it from matching a longer name."""
        return f"{self.root}election/"

    def candidate(self, worker: str) -> str:
        return f"{self.election}{worker}"

    # -- state: flows down ----------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return f"{self.root}state/"

    @property
    def leader(self) -> str:
        return f"{self.state}leader"

    @property
    def view(self) -> str:
        return f"{self.state}view"

    @property
    def agreed(self) -> str:
        return f"{self.state}agreed"

    @property
    def entered(self) -> str:
        """The newest view that all staying ranks have entered: its newcomers may begin."""
        return f"{self.state}entered"

    @property
    def epoch(self) -> str:
        """How often etcd's history went back or checkpoints were adopted: the high part of every later fencing token.
        Absent in epoch 0."""
        return f"{self.state}epoch"

    @property
    def plans(self) -> str:
        return f"{self.state}plans/"

    def plan(self, number: int) -> str:
        return f"{self.plans}{number}"

    def decision(self, number: int) -> str:
        return f"{self.plans}{number}/decision"

    def open_mark(self, number: int) -> str:
        """Exists while plan `number` may be committed. An etcd whose database is full takes no decision, but it
        deletes: without the mark the plan can only be aborted, and a rank at its gate may continue."""
        return f"{self.state}open/{number}"

    @property
    def rejected(self) -> str:
        return f"{self.state}rejected/"

    def rejected_of(self, name: str) -> str:
        return f"{self.rejected}{name}"

    @property
    def declined(self) -> str:
        """Prefix: declined commands."""
        return f"{self.state}declined/"

    def declined_of(self, command_id: str) -> str:
        return f"{self.declined}{command_id}"

    @property
    def forming(self) -> str:
        """The ranks that the next view waits for."""
        return f"{self.state}forming"

    @property
    def refused(self) -> str:
        return f"{self.state}refused/"

    def refused_of(self, rank: int, incarnation: str) -> str:
        return f"{self.refused}{rank}-{incarnation}"

    @property
    def barriers(self) -> str:
        """Prefix: the last release of each barrier; the newest 20."""
        return f"{self.state}barriers/"

    def barrier(self, name: str) -> str:
        return f"{self.barriers}{name}"

    # -- history: not watched --------------------------------------------------------------------------------------

    @property
    def starts(self) -> str:
        """Prefix: the starts of the fresh ones among the last 200 views."""
        return f"{self.root}history/starts/"

    def start_of(self, view: int) -> str:
        return f"{self.starts}{view}"

    def first_step_of(self, view: int) -> str:
        return f"{self.start_of(view)}/step"

    @property
    def terms(self) -> str:
        """Prefix: the last 100 leaders, by term."""
        return f"{self.root}history/leaders/"

    def term(self, number: int) -> str:
        return f"{self.terms}{number}"

    @property
    def epochs(self) -> str:
        """Prefix: the last 100 records of `state/epoch`, by number."""
        return f"{self.root}history/epochs/"

    def epoch_of(self, number: int) -> str:
        return f"{self.epochs}{number}"

    @property
    def failed_saves(self) -> str:
        """The last 20 checkpoints that could not be saved, and why."""
        return f"{self.root}history/failed-saves"

    # -- reports: flow up -----------------------------------------------------------------------------------------

    @property
    def members(self) -> str:
        return f"{self.root}reports/members/"

    def member(self, rank: int, incarnation: str) -> str:
        """One key per registration, not per rank: a stray second join must not overwrite the first one."""
        return f"{self.members}{rank}/{incarnation}"

    @property
    def nodes(self) -> str:
        """Prefix: which node holds a name, one key per node, on its lease."""
        return f"{self.root}reports/nodes/"

    def node(self, node: str) -> str:
        return f"{self.nodes}{node}"

    @property
    def heads(self) -> str:
        """Prefix: what a node's workers hold and etcd has lost, on its lease; no key while nothing is lost."""
        return f"{self.root}reports/heads/"

    def head_of(self, node: str) -> str:
        return f"{self.heads}{node}"

    @property
    def schemas(self) -> str:
        return f"{self.root}reports/schemas/"

    def schema_of(self, digest: str) -> str:
        return f"{self.schemas}{digest}"

    @property
    def acks(self) -> str:
        return f"{self.root}reports/acks/"

    def ack(self, number: int, node: str) -> str:
        return f"{self.acks}{number}/{node}"

    @property
    def receipts(self) -> str:
        return f"{self.root}reports/receipts/"

    def receipts_of(self, number: int) -> str:
        return f"{self.receipts}{number}/"

    def receipt(self, number: int, node: str) -> str:
        return f"{self.receipts}{number}/{node}"

    @property
    def left(self) -> str:
        """Prefix: ranks of a node that ended cleanly. On no lease, like an ack."""
        return f"{self.root}reports/left/"

    def left_of(self, node: str) -> str:
        return f"{self.left}{node}"

    def resigned_of(self, node: str) -> str:
        """Why a node gave up the lead, until its successor has read it. On no lease."""
        return f"{self.root}reports/resigned/{node}"

    @property
    def failures(self) -> str:
        """Prefix: by view, the first failed rank of each node. On no lease. Deleted when the next view is formed."""
        return f"{self.root}reports/failures/"

    def failure(self, view: int, node: str) -> str:
        return f"{self.failures}{view}/{node}"

    @property
    def arrivals(self) -> str:
        """Prefix: the ranks that wait at barriers, one key per node. On no lease: an arrival stays true."""
        return f"{self.root}reports/barriers/"

    def arrivals_of(self, node: str) -> str:
        return f"{self.arrivals}{node}"

    @property
    def metrics(self) -> str:
        return f"{self.root}reports/metrics/"

    def metrics_of(self, rank: int) -> str:
        return f"{self.metrics}{rank}"


def last_part(key: str) -> str:
    """`lr` for `/training/gpt-a/config/lr`."""
    return key.rsplit("/", 1)[-1]
