"""A node that is about to go asks the whole run to stop: as one command, whoever else asks too. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from instep.coordination.keys import Keys
from instep.coordination.records import Agreed, Command, Decision, Plan
from instep.coordination.transactions import Txn
from instep.etcd import Compare, Op


@dataclass(frozen=True, slots=True)
class KnownRun:
    """How the run stands, as far as the node has heard: what it agrees on, its newest plan, and their revisions."""

    view_revision: int
    agreed: Agreed
    agreed_revision: int
    plan: Plan | None = None
    decision: Decision | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether a stop is agreed on, or about to be."""
        proposed = self.plan is not None and self.plan.kind == "stop" and self.decision is None
        return self.agreed.course.ends_at is not None or proposed

    @property
    def moment(self) -> tuple[int, int]:
        return self.view_revision, self.agreed_revision


def command_id(agreed: Agreed) -> str:
    """The same for all nodes, and for as long as the run has not begun anew."""
    return f"sigterm-{agreed.began}"


def ask_to_stop(keys: Keys, known: KnownRun, command: Command) -> Txn:
    """Writes the command unless it stands. Refused where the run has agreed on something since, a stop maybe, or where
    other workers train now: it was not meant for them."""
    key = keys.command(command_id(known.agreed))
    compares = (
        Compare.absent(key),
        Compare.mod_revision(keys.view, "==", known.view_revision),
        Compare.mod_revision(keys.agreed, "==", known.agreed_revision),
    )
    return Txn(compares, (Op.put(key, command.encode()),))
