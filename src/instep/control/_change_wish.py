"""A written change as something to be followed: when it has been applied, refused, or overtaken. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from instep.control._change import Written
from instep.control._drift import drift_of_receipts, drift_sentence
from instep.control._facts import Facts, ValueChange
from instep.control._picture import Picture
from instep.control._stand import Outcome, Stand, all_applied
from instep.control._text import format_changes
from instep.errors import ChangeRejected
from instep.protocol.keys import Keys
from instep.protocol.records import Plan
from instep.scalar import Scalar, parse_scalar, same


@dataclass(frozen=True, slots=True)
class ChangeReceipt(Facts):
    """What became of a change. `outcome` is one of `Outcome`, rejected excepted: that is raised.

    `step` is the first step run with the new values, the same on all ranks; None where no plan was needed.
    `took_s` is from before the write until the last answer was seen here.
    """

    outcome: Outcome
    changes: tuple[ValueChange, ...]
    plan: int | None
    attempts: int
    step: int | None
    armed: int
    applied: int
    ranks: int
    view: int | None
    took_s: float
    sentence: str
    drift: dict[str, str] = field(default_factory=dict)
    """By hyperparameter, the ranks whose optimizer does not hold it although they have applied it."""

    @property
    def holds(self) -> bool:
        """True when the values hold on every rank. `drift` names optimizers that something else writes to."""
        return self.outcome in ("applied", "started", "already")


@dataclass(frozen=True, slots=True)
class ChangeWish:
    """All values of it are of one revision, and so are the plans made for it."""

    written: Written

    @property
    def what(self) -> str:
        return format_changes(self.written.changes)

    @property
    def asked_at_s(self) -> float:
        return self.written.asked_at_s

    @property
    def refused_outcome(self) -> Outcome:
        return "rejected"

    def is_for(self, plan: Plan) -> bool:
        """After etcd's history has gone back, another change may have the same revision."""
        is_ours = plan.change_id in (None, self.written.change_id)
        return plan.revision == self.written.revision and plan.kind == "config" and is_ours

    def watched(self, keys: Keys) -> tuple[str, ...]:
        return (keys.config,)

    def refusal(self, picture: Picture) -> str | None:
        found = {
            name: record.reason
            for name in self.written.values
            if (record := picture.rejected.get(name)) is not None and record.revision == self.written.revision
        }
        return "; ".join(f"{name}: {reason}" for name, reason in found.items()) or None

    def is_lost(self, picture: Picture) -> bool:
        agreed = picture.agreed.values if picture.agreed is not None else {}
        holds = all(name in agreed and same(agreed[name], value) for name, value in self.written.values.items())
        return (
            not holds and not self._standing(picture) and picture.went_back(self.written.epoch, self.written.revision)
        )

    def _standing(self, picture: Picture) -> list[str]:
        """The names that are still desired as it was written."""
        return [
            name
            for name, value in self.written.values.items()
            if (item := picture.desired.get(name)) is not None
            and item.revision == self.written.revision
            and _means(item.text, value)
        ]

    def without_plan(self, picture: Picture) -> Outcome | None:
        agreed, view = picture.agreed, picture.view
        wanted, revision = self.written.values, self.written.revision
        if agreed is not None and all(
            name in agreed.values and same(agreed.values[name], value) for name, value in wanted.items()
        ):
            started = view is not None and view.fresh and agreed.plan == view.start.plan
            if started and agreed.revision >= revision and not self.written.already_agreed:
                return "started"
            plan = picture.open_plan()
            if plan is None or not wanted.keys() & plan.values.keys():
                return "already"
        if not self._standing(picture):
            return "superseded"
        return "ended" if picture.ended() else None

    def committed(self, picture: Picture, plan: Plan, stand: Stand) -> Stand:
        """A later view that started with these values everywhere leaves no rank before the gate."""
        view = picture.view
        overtaken = view is not None and view.number > plan.view and view.start.previous is None
        return all_applied(picture, plan, stand.attempt) if overtaken else stand

    def is_hopeless(self, picture: Picture, stand: Stand) -> bool:
        return False

    def refused(self, stand: Stand) -> ChangeRejected:
        return ChangeRejected(
            f"{self.what}: rejected by the run, the agreed values are unchanged: {stand.detail}",
            problems=dict.fromkeys(self.written.values, stand.detail or ""),
        )

    def unfinished(self, stand: Stand | None) -> str:
        return "It stays desired."

    def receipt(self, picture: Picture, stand: Stand, took_s: float) -> ChangeReceipt:
        took_s = round(took_s, 3)  # once: the sentence and the figure are to say the same
        changes = _changes(picture, self.written, stand)
        assert stand.outcome is not None
        drift = drift_of_receipts(picture, stand.plan) if stand.outcome == "applied" else {}
        sentence = receipt_sentence(changes, stand, took_s)
        return ChangeReceipt(
            outcome=stand.outcome,
            changes=changes,
            plan=stand.plan,
            attempts=stand.attempt,
            step=stand.steps[0] if stand.steps else None,
            armed=stand.armed,
            applied=stand.applied,
            ranks=stand.ranks,
            view=stand.view,
            took_s=took_s,
            sentence=f"{sentence}; but {drift_sentence(drift)}" if drift else sentence,
            drift=drift,
        )


def receipt_sentence(changes: tuple[ValueChange, ...], stand: Stand, took_s: float) -> str:
    """`lr 3e-4 → 1e-4: requested, armed on 8/8 ranks, applied at step 12341 on 8/8, 0.21 s`."""
    what, ranks = format_changes(changes), stand.ranks
    if stand.outcome == "applied":
        at = " and ".join(map(str, stand.steps[:4]))
        again = f" (attempt {stand.attempt})" if stand.attempt > 1 else ""
        return (
            f"{what}: requested, armed on {stand.armed}/{ranks} ranks, "
            f"applied at step {at} on {stand.applied}/{ranks}, {took_s:.2f} s{again}"
        )
    if stand.outcome == "started":
        return f"{what}: requested, view {stand.view} started with it on {stand.applied}/{ranks} ranks, {took_s:.2f} s"
    if stand.outcome == "already":
        return f"{what}: every rank has it already, nothing to apply"
    if stand.outcome == "superseded":
        return f"{what}: not applied, a later change of the same hyperparameters took its place"
    if stand.outcome == "lost":
        return f"{what}: not applied, etcd's history went back and lost it before it was agreed on: set it again"
    why = "no worker of the run is alive" if stand.outcome == "stopped" else "the run ended first"
    return f"{what}: not applied, {why}; its next start takes it"


def _changes(picture: Picture, written: Written, stand: Stand) -> tuple[ValueChange, ...]:
    """The written changes, `before` as the plan says it: another change may have come between."""
    plan = picture.plans.get(stand.plan) if stand.plan is not None else None
    if plan is None or stand.outcome != "applied":
        return written.changes
    return tuple(
        ValueChange(
            change.name, plan.previous.get(change.name), change.after, plan.previous.get(change.name) is not None
        )
        if change.name in plan.values
        else change
        for change in written.changes
    )


def _means(text: str, value: Scalar) -> bool:
    """Whether the text in etcd is that value, however it was written: others write 3e-4 for 0.0003."""
    try:
        return same(parse_scalar(text), value)
    except ValueError:
        return False
