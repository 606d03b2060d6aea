"""How far a written change or command has come. Pure: a run's picture and the wish in, one stand out.

Level-triggered like the leader's own decisions, so that no event can be missed: what etcd holds now says it
all. In `state/` every attempt is kept, so even a watch that starts late tells the same story.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from instep.control._picture import Picture
from instep.control._text import counted
from instep.errors import InstepError
from instep.protocol.keys import Keys
from instep.protocol.records import Plan, format_ranks
from instep.text import one_line

R_co = TypeVar("R_co", covariant=True)

Stage = Literal["written", "planned", "aborted", "committed", "saving", "done"]
Outcome = Literal[
    "applied", "started", "already", "rejected", "superseded", "ended", "stopped", "declined", "unsaved", "lost"
]
"""applied: before one step, on all ranks. started: the values a new view started with. already: every rank
had them. rejected: the run refused them. superseded: written again before anybody could plan them, or, of a command,
overtaken by a new start of the run. ended: the run ended first. stopped: no worker of the run is alive. declined: the
run refused the command. unsaved: the command was carried out, but the checkpoint that it asked for was not saved. lost:
etcd's history went back before it was agreed on."""

_DOUBTFUL_OUTCOMES: tuple[Outcome, ...] = ("superseded", "ended")
"""Those told by two watches together, of which one may lag."""


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


class Wish(Protocol[R_co]):
    """What was written and is followed: a change of values, or a command."""

    @property
    def what(self) -> str:
        """It, in a sentence."""

    @property
    def asked_at_s(self) -> float:
        """Monotonic time before the write."""

    @property
    def refused_outcome(self) -> Outcome:
        """How it is called when the run refuses it."""

    def is_for(self, plan: Plan) -> bool:
        """Whether the plan is an attempt to carry it out."""

    def refusal(self, picture: Picture) -> str | None:
        """Why the run refused it, where a record of its own says so."""

    def is_lost(self, picture: Picture) -> bool:
        """Whether etcd's history has gone back since it was written, and does not hold it."""

    def without_plan(self, picture: Picture) -> Outcome | None:
        """The outcome when no plan of it stands: it was not needed, or is not possible any more."""

    def committed(self, picture: Picture, plan: Plan, stand: Stand) -> Stand:
        """The stand of a plan that is agreed, in the light of what is particular to it."""

    def is_hopeless(self, picture: Picture, stand: Stand) -> bool:
        """Whether what it waits for will not come, as far as can be seen: believed when it stays so."""

    def watched(self, keys: Keys) -> tuple[str, ...]:
        """Prefixes that say how it stands, beside those of the run's state."""

    def refused(self, stand: Stand) -> InstepError:
        """The error that ends the following of one that was refused."""

    def unfinished(self, stand: Stand | None) -> str:
        """What becomes of it now that nobody waits any more."""

    def receipt(self, picture: Picture, stand: Stand, took_s: float) -> R_co:
        """The end of it."""


def newest_attempt(picture: Picture, wish: Wish[object]) -> int | None:
    """The number of the newest plan for it."""
    return max((plan.number for plan in picture.plans.values() if wish.is_for(plan)), default=None)


def is_doubtful(picture: Picture, stand: Stand) -> bool:
    """Whether it must be confirmed by a reading at one revision, in a picture that several watches keep up to date.

    A rank that has left counts only with a receipt, which etcd then has: the watch of receipts may lag.
    """
    if stand.outcome in _DOUBTFUL_OUTCOMES:
        return True
    applied = picture.steps_applied(stand.plan or 0)
    return stand.outcome == "applied" and bool(picture.ranks_left() - applied.keys())


def stand_of(picture: Picture, wish: Wish[object]) -> Stand:
    """Where it stands now. One that `is_doubtful` is sure only in a picture of one revision."""
    attempts = [plan for _, plan in sorted(picture.plans.items()) if wish.is_for(plan)]
    decision = picture.decisions.get(attempts[-1].number) if attempts else None
    if attempts and decision is None:
        return _planned(picture, attempts)
    if attempts and decision is not None and decision.commit:
        return wish.committed(picture, attempts[-1], _committed(picture, attempts))
    last = attempts[-1] if attempts else None
    refused = wish.refusal(picture)
    if refused is None and decision is not None and decision.refused:
        refused = "; ".join(f"{name}: {reason}" for name, reason in decision.refused.items())
    tries = len(attempts)
    number = last.number if last else None
    if refused is not None:
        return Stand("done", wish.refused_outcome, number, attempt=tries, detail=one_line(refused))
    outcome = _lost(picture) if wish.is_lost(picture) else wish.without_plan(picture)
    ranks = len(picture.ranks() - picture.ranks_left())
    if outcome is not None:
        view = picture.view.number if picture.view else None
        return Stand("done", outcome, number, attempt=tries, ranks=ranks, applied=ranks, view=view)
    if last is not None and decision is not None:
        detail = one_line(decision.reason or "no reason was given")
        return Stand("aborted", None, last.number, last.gate, tries, ranks=ranks, detail=detail)
    return Stand("written", ranks=ranks)


def all_applied(picture: Picture, plan: Plan, tries: int) -> Stand:
    """Every rank that still runs has applied it, each before the same step."""
    steps = picture.steps_applied(plan.number)
    ranks = len((picture.ranks() - picture.ranks_left()) | (picture.ranks() & steps.keys()))
    at = tuple(sorted(set(steps.values()))) or (plan.gate,)
    return Stand("done", "applied", plan.number, plan.gate, tries, ranks, ranks, ranks, steps=at)


def describe(stand: Stand) -> str:
    """The stand as one line for a person who waits."""
    gate = f"plan {stand.plan}, step {stand.gate}"
    match stand.stage:
        case "planned":
            return f"{gate}: armed on {stand.armed}/{stand.ranks} ranks"
        case "committed":
            return f"{gate}: agreed, applied on {stand.applied}/{stand.ranks} ranks"
        case "saving":
            return f"{gate}: applied on {stand.applied}/{stand.ranks} ranks; {stand.detail}"
        case "aborted":
            return f"{gate} was aborted ({stand.detail}); it is planned again, attempt {stand.attempt + 1}"
        case "done":
            return stand.outcome or "done"
    return "requested; it waits to be planned" if stand.ranks else "requested; it waits for the run to start"


def how_far(stand: Stand) -> str:
    """The stand for a message about a time-out."""
    missing = f", not on {format_ranks(stand.waiting)}" if stand.waiting else ""
    noun = "rank" if stand.ranks == 1 else "ranks"
    match stand.stage:
        case "planned":
            return f"armed on {stand.armed}/{stand.ranks} {noun}{missing}"
        case "committed":
            return f"agreed for step {stand.gate}, applied on {stand.applied}/{stand.ranks} {noun}{missing}"
        case "saving":
            return f"applied at step {stand.gate} on {stand.applied}/{stand.ranks} {noun}, {stand.detail}"
        case "aborted":
            return f"aborted {counted(stand.attempt, 'time')}, the last because {stand.detail}"
    return "not planned by the run's leader"


def _lost(picture: Picture) -> Outcome | None:
    """Until the ranks have reported what they hold, a plan of it may still be written back."""
    return "lost" if picture.epoch is not None and picture.epoch.settled else None


def _planned(picture: Picture, attempts: list[Plan]) -> Stand:
    plan = attempts[-1]
    active = picture.ranks() - picture.ranks_left()
    armed = picture.ranks_armed(plan.number) & active
    waiting = tuple(sorted(active - armed))
    return Stand("planned", None, plan.number, plan.gate, len(attempts), len(armed), 0, len(active), waiting)


def _committed(picture: Picture, attempts: list[Plan]) -> Stand:
    plan, tries = attempts[-1], len(attempts)
    everyone = picture.ranks()
    applied = everyone & picture.steps_applied(plan.number).keys()
    counting = (everyone - picture.ranks_left()) | applied
    if counting and applied == counting:
        return all_applied(picture, plan, tries)
    if everyone and not counting:
        return Stand("done", "ended", plan.number, plan.gate, tries)
    total = len(counting)
    waiting = tuple(sorted(counting - applied))
    return Stand("committed", None, plan.number, plan.gate, tries, total, len(applied), total, waiting)
