"""A preempted node asks the whole run to stop, with one command for all nodes that ask. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from instep.etcd import Compare, Op
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed, Command, Decision, Plan
from instep.protocol.transactions import Txn


@dataclass(frozen=True, slots=True)
class KnownRun:
    """The state of the run as the node knows it: agreed values, newest plan, and their revisions."""

    view_revision: int
    agreed: Agreed
    agreed_revision: int
    plan: Plan | None = None
    decision: Decision | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether a stop is agreed on or proposed."""
        proposed = self.plan is not None and self.plan.kind == "stop" and self.decision is None
        return self.agreed.directive.ends_at is not None or proposed

    @property
    def moment(self) -> tuple[int, int]:
        return self.view_revision, self.agreed_revision


def command_id(agreed: Agreed) -> str:
    """The same id for all nodes, until the next fresh start."""
    return f"sigterm-{agreed.began}"


def ask_to_stop(keys: Keys, known: KnownRun, command: Command) -> Txn:
    """Writes the command unless it exists. etcd refuses it if the run has agreed on something since, such as a stop, or
    if other workers train now."""
    key = keys.command(command_id(known.agreed))
    compares = (
        Compare.absent(key),
        Compare.mod_revision(keys.view, "==", known.view_revision),
        Compare.mod_revision(keys.agreed, "==", known.agreed_revision),
    )
    return Txn(compares, (Op.put(key, command.encode()),))
