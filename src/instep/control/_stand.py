"""How far a written change has come. Pure: a run's picture and the change in, one stand out.

Level-triggered like the leader's own decisions, so that no event can be missed: what etcd holds now says it
all. In `state/` every attempt is kept, so even a watch that starts late tells the same story.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instep.control._change import Written
from instep.control._picture import Picture
from instep.control._text import counted, one_line
from instep.coordination.records import Plan, format_ranks
from instep.scalar import same

Stage = Literal["written", "planned", "aborted", "committed", "done"]
Outcome = Literal["applied", "started", "already", "rejected", "superseded", "ended"]
"""applied: before one step, on all ranks. started: the values a new view started with. already: every rank
had them. rejected: the run refused them. superseded: written again before anybody could plan them. ended: the
run ended first."""

SETTLED_OUTCOMES: tuple[Outcome, ...] = ("applied", "started", "already")
DOUBTFUL_OUTCOMES: tuple[Outcome, ...] = ("superseded", "ended")
"""Those told by two watches together, of which one may lag: to be confirmed by a reading at one revision."""


@dataclass(frozen=True, slots=True)
class Stand:
    """`ranks` is how many ranks have to answer or apply; those that left cleanly do not count."""

    stage: Stage
    outcome: Outcome | None = None
    plan: int | None = None
    gate: int | None = None
    attempt: int = 0
    armed: int = 0
    applied: int = 0
    ranks: int = 0
    waiting: tuple[int, ...] = ()
    """Ranks that have not answered, or not applied yet."""
    steps: tuple[int, ...] = ()
    """The steps before which it was applied: one, since all ranks apply it at the same step."""
    view: int | None = None
    detail: str | None = None
    """Why it was aborted or rejected, or who superseded it."""


def stand_of(picture: Picture, written: Written) -> Stand:
    """Where the change stands now. The outcomes in DOUBTFUL_OUTCOMES are sure only in a picture of one revision."""
    attempts = [plan for number, plan in sorted(picture.plans.items()) if plan.revision == written.revision]
    decision = picture.decisions.get(attempts[-1].number) if attempts else None
    if attempts and decision is None:
        return _planned(picture, attempts)
    if attempts and decision is not None and decision.commit:
        return _committed(picture, attempts)
    last = attempts[-1] if attempts else None
    refused = _refusal(picture, written)
    if refused is None and decision is not None and decision.refused:
        refused = "; ".join(f"{name}: {reason}" for name, reason in decision.refused.items())
    tries = len(attempts)
    number = last.number if last else None
    if refused is not None:
        return Stand("done", "rejected", number, attempt=tries, detail=one_line(refused))
    outcome = _without_plan(picture, written)
    ranks = len(picture.ranks() - picture.ranks_left())
    if outcome is not None:
        view = picture.view.number if picture.view else None
        return Stand("done", outcome, number, attempt=tries, ranks=ranks, applied=ranks, view=view)
    if last is not None and decision is not None:
        detail = one_line(decision.reason or "no reason was given")
        return Stand("aborted", None, last.number, last.gate, tries, ranks=ranks, detail=detail)
    return Stand("written", ranks=ranks)


def describe(stand: Stand) -> str:
    """The stand as one line for a person who waits."""
    gate = f"plan {stand.plan}, step {stand.gate}"
    if stand.stage == "planned":
        return f"{gate}: armed on {stand.armed}/{stand.ranks} ranks"
    if stand.stage == "committed":
        return f"{gate}: agreed, applied on {stand.applied}/{stand.ranks} ranks"
    if stand.stage == "aborted":
        return f"{gate} was aborted ({stand.detail}); it is planned again, attempt {stand.attempt + 1}"
    if stand.stage == "done":
        return stand.outcome or "done"
    return "requested; it waits to be planned" if stand.ranks else "requested; it waits for the run to start"


def how_far(stand: Stand) -> str:
    """The stand for a message about a time-out."""
    missing = f", not on {format_ranks(stand.waiting)}" if stand.waiting else ""
    noun = "rank" if stand.ranks == 1 else "ranks"
    if stand.stage == "planned":
        return f"armed on {stand.armed}/{stand.ranks} {noun}{missing}"
    if stand.stage == "committed":
        return f"agreed for step {stand.gate}, applied on {stand.applied}/{stand.ranks} {noun}{missing}"
    if stand.stage == "aborted":
        return f"aborted {counted(stand.attempt, 'time')}, the last because {stand.detail}"
    return "not planned by the run's leader"


def _planned(picture: Picture, attempts: list[Plan]) -> Stand:
    plan = attempts[-1]
    active = picture.ranks() - picture.ranks_left()
    armed = picture.ranks_armed(plan.number) & active
    waiting = tuple(sorted(active - armed))
    return Stand("planned", None, plan.number, plan.gate, len(attempts), len(armed), 0, len(active), waiting)


def _committed(picture: Picture, attempts: list[Plan]) -> Stand:
    plan, tries = attempts[-1], len(attempts)
    steps = picture.steps_applied(plan.number)
    everyone = picture.ranks()
    if _overtaken_by_view(picture, plan):
        return _all_applied(picture, plan, tries, steps)
    applied = everyone & steps.keys()
    counting = (everyone - picture.ranks_left()) | applied
    if counting and applied == counting:
        return _all_applied(picture, plan, tries, steps)
    if everyone and not counting:
        return Stand("done", "ended", plan.number, plan.gate, tries)
    total = len(counting)
    waiting = tuple(sorted(counting - applied))
    return Stand("committed", None, plan.number, plan.gate, tries, total, len(applied), total, waiting)


def _overtaken_by_view(picture: Picture, plan: Plan) -> bool:
    """Whether a later view started with these values everywhere, so that no rank stands before the gate."""
    view = picture.view
    return view is not None and view.number > plan.view and view.start.previous is None


def _all_applied(picture: Picture, plan: Plan, tries: int, steps: dict[int, int]) -> Stand:
    ranks = len((picture.ranks() - picture.ranks_left()) | (picture.ranks() & steps.keys()))
    at = tuple(sorted(set(steps.values()))) or (plan.gate,)
    return Stand("done", "applied", plan.number, plan.gate, tries, ranks, ranks, ranks, steps=at)


def _refusal(picture: Picture, written: Written) -> str | None:
    found = {
        name: record.reason
        for name in written.values
        if (record := picture.rejected.get(name)) is not None and record.revision == written.revision
    }
    return "; ".join(f"{name}: {reason}" for name, reason in found.items()) or None


def _without_plan(picture: Picture, written: Written) -> Outcome | None:
    """The outcome when no plan of this change stands: it was not needed, or is not possible any more."""
    agreed, view = picture.agreed, picture.view
    wanted = written.values
    if agreed is not None and all(
        name in agreed.values and same(agreed.values[name], value) for name, value in wanted.items()
    ):
        started = view is not None and view.fresh and agreed.plan == view.start.plan
        if started and agreed.revision >= written.revision and not written.already_agreed:
            return "started"
        plan = picture.open_plan()
        if plan is None or not wanted.keys() & plan.values.keys():
            return "already"
    standing = [
        name for name in wanted if name in picture.desired and picture.desired[name].revision == written.revision
    ]
    if not standing:
        return "superseded"
    return "ended" if picture.ended() else None
