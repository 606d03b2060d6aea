"""How far a plan, or the change or command that it is made for, has come. Pure.

This is the only place that computes it: `follow`, `status` and `history` show the same result. It is level-triggered
like the leader's decisions: what etcd holds now is enough, so no event can be missed. `state/` keeps every attempt, so
a watch that starts late sees the same history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from instep.control._cache import RunCache
from instep.control._change import Written
from instep.control._commands import Sent
from instep.control._report import JsonReport
from instep.errors import InstepError
from instep.protocol.keys import Keys
from instep.protocol.records import Plan, format_ranks
from instep.text import counted, one_line

R_co = TypeVar("R_co", covariant=True)

Stage = Literal["written", "planned", "aborted", "committed", "saving", "done"]
Outcome = Literal[
    "applied", "started", "already", "rejected", "superseded", "ended", "stopped", "declined", "unsaved", "lost"
]
"""applied: before one step, on all ranks. started: a new view started with the values. already: every rank had them.
rejected: the run refused the values. superseded: overwritten before it was planned, or, for a command, the run was
restarted first. ended: the run ended first. stopped: no worker of the run is alive. declined: the run refused the
command. unsaved: the command was carried out, but the checkpoint that it requested was not saved. lost: etcd's history
went back before it was agreed on."""

NO_REASON = "no reason was given"
_DOUBTFUL_OUTCOMES: tuple[Outcome, ...] = ("superseded", "ended")
"""Outcomes that follow from two watches together, one of which may lag."""
_DRIFT_CURE = "another part of the script overwrites it; the training's log says what to do"


@dataclass(frozen=True, slots=True)
class Progress(JsonReport):
    """How far a change or a command has come. `ranks` counts the ranks that have to answer or apply; ranks that left
    cleanly do not count."""

    stage: Stage
    outcome: Outcome | None = None
    plan: int | None = None
    gate: int | None = None
    attempt: int = 0
    armed: int = 0
    applied: int = 0
    ranks: int = 0
    waiting: tuple[int, ...] = ()
    """Ranks that have not answered, or not applied it yet."""
    steps: tuple[int, ...] = ()
    """The steps before which it was applied: one, since all ranks apply it at the same step."""
    view: int | None = None
    detail: str | None = None
    """Why it was aborted or refused, or what the save waits for."""

    def to_json(self) -> dict[str, Any]:
        return {**JsonReport.to_json(self), "sentence": self.sentence}

    @property
    def sentence(self) -> str:
        """One line for an operator who is waiting."""
        gate = f"plan {self.plan}, step {self.gate}"
        match self.stage:
            case "planned":
                return f"{gate}: armed on {self.armed}/{self.ranks} ranks"
            case "committed":
                return f"{gate}: agreed, applied on {self.applied}/{self.ranks} ranks"
            case "saving":
                return f"{gate}: applied on {self.applied}/{self.ranks} ranks; {self.detail}"
            case "aborted":
                return f"{gate} was aborted ({self.detail}); it is planned again, attempt {self.attempt + 1}"
            case "done":
                return self.outcome or "done"
        return "requested; it waits to be planned" if self.ranks else "requested; it waits for the run to start"

    @property
    def when_timed_out(self) -> str:
        """The same, for the message of a timeout."""
        missing = f", not on {format_ranks(self.waiting)}" if self.waiting else ""
        noun = "rank" if self.ranks == 1 else "ranks"
        match self.stage:
            case "planned":
                return f"armed on {self.armed}/{self.ranks} {noun}{missing}"
            case "committed":
                return f"agreed for step {self.gate}, applied on {self.applied}/{self.ranks} {noun}{missing}"
            case "saving":
                return f"applied at step {self.gate} on {self.applied}/{self.ranks} {noun}, {self.detail}"
            case "aborted":
                return f"aborted {counted(self.attempt, 'time')}, the last because {self.detail}"
        return "not planned by the run's leader"


class Request(Protocol[R_co]):
    """What an operator wrote and follows: a change of values, or a command."""

    @property
    def asked(self) -> Written | Sent:
        """What was written."""

    @property
    def refused_outcome(self) -> Outcome:
        """The outcome when the run refuses it."""

    def is_for(self, plan: Plan) -> bool:
        """Whether the plan is an attempt to carry it out."""

    def refusal(self, cache: RunCache) -> str | None:
        """Why the run refused it, where a record of its own says so."""

    def is_lost(self, cache: RunCache) -> bool:
        """Whether etcd's history has gone back since it was written, and no longer holds it."""

    def without_plan(self, cache: RunCache) -> Outcome | None:
        """The outcome while etcd holds no plan for it: it was not needed, or is no longer possible."""

    def committed(self, cache: RunCache, plan: Plan, progress: Progress) -> Progress:
        """The progress of a committed plan, with what is particular to this request."""

    def cannot_finish(self, cache: RunCache, progress: Progress) -> bool:
        """Whether what it waits for will probably not happen; callers believe it only when it stays true."""

    def watched(self, keys: Keys) -> tuple[str, ...]:
        """Prefixes that show its progress, besides those of the run's state."""

    def refused(self, progress: Progress) -> InstepError:
        """The error that `follow` raises when the run refused it."""

    def unfinished(self, progress: Progress | None) -> str:
        """What happens to it after the caller has stopped waiting."""

    def receipt(self, cache: RunCache, progress: Progress, took_s: float) -> R_co:
        """The receipt that ends it."""


def newest_attempt(cache: RunCache, request: Request[object]) -> int | None:
    """The number of the newest plan for the request."""
    return max((plan.number for plan in cache.plans.values() if request.is_for(plan)), default=None)


def request_of(plan: Plan) -> tuple[int, str | None]:
    """Identifies what a plan was made for: its attempts share it. Values of one revision are one change; each command
    has an id of its own."""
    return plan.revision, None if plan.kind == "config" else plan.change_id


def attempt_of(cache: RunCache, plan: Plan) -> int:
    """The number of plans made for the same change or command, this one included."""
    return sum(1 for other in cache.plans.values() if request_of(other) == request_of(plan))


def is_doubtful(cache: RunCache, progress: Progress) -> bool:
    """Whether a read at one revision must confirm it, when several watches keep the cache up to date.

    A rank that has left counts only with a receipt, which etcd then has: the watch of receipts may lag.
    """
    if progress.outcome in _DOUBTFUL_OUTCOMES:
        return True
    applied = cache.steps_applied(progress.plan or 0)
    return progress.outcome == "applied" and bool(cache.ranks_left() - applied.keys())


def progress_of(cache: RunCache, request: Request[object]) -> Progress:
    """How far a request has come. If `is_doubtful`, it is certain only in a cache of one revision."""
    attempts = [plan for _, plan in sorted(cache.plans.items()) if request.is_for(plan)]
    tries = len(attempts)
    last = attempts[-1] if attempts else None
    decision = cache.decisions.get(last.number) if last is not None else None
    if last is not None and decision is None:
        return progress_of_plan(cache, last, tries)
    if last is not None and decision is not None and decision.commit:
        return request.committed(cache, last, progress_of_plan(cache, last, tries))
    refused = request.refusal(cache)
    if refused is None and decision is not None and decision.refused:
        refused = "; ".join(f"{name}: {reason}" for name, reason in decision.refused.items())
    number = last.number if last else None
    if refused is not None:
        return Progress("done", request.refused_outcome, number, attempt=tries, detail=one_line(refused))
    outcome = _lost(cache) if request.is_lost(cache) else request.without_plan(cache)
    ranks = len(cache.ranks_active())
    if outcome is not None:
        view = cache.view.number if cache.view else None
        return Progress("done", outcome, number, attempt=tries, ranks=ranks, applied=ranks, view=view)
    return progress_of_plan(cache, last, tries) if last is not None else Progress("written", ranks=ranks)


def progress_of_plan(cache: RunCache, plan: Plan, attempt: int) -> Progress:
    """How far one plan has come: planned until it is decided, then aborted, or committed until every rank that still
    runs has applied it."""
    decision = cache.decisions.get(plan.number)
    everyone = cache.ranks()
    active = cache.ranks_active()
    if decision is None:
        armed = cache.ranks_armed(plan.number) & active
        waiting = tuple(sorted(active - armed))
        return Progress("planned", None, plan.number, plan.gate, attempt, len(armed), 0, len(active), waiting)
    if not decision.commit:
        detail = one_line(decision.reason or NO_REASON)
        return Progress("aborted", None, plan.number, plan.gate, attempt, ranks=len(active), detail=detail)
    applied = everyone & cache.steps_applied(plan.number).keys()
    counting = active | applied
    if counting and applied == counting:
        return all_applied(cache, plan, attempt)
    total = len(counting)
    if everyone and not counting:
        return Progress("done", "ended", plan.number, plan.gate, attempt)
    waiting = tuple(sorted(counting - applied))
    return Progress("committed", None, plan.number, plan.gate, attempt, total, len(applied), total, waiting)


def all_applied(cache: RunCache, plan: Plan, attempt: int) -> Progress:
    """Every rank that still runs has applied it, each before the same step."""
    steps = cache.steps_applied(plan.number)
    ranks = len(cache.ranks_active() | (cache.ranks() & steps.keys()))
    at = tuple(sorted(set(steps.values()))) or (plan.gate,)
    return Progress("done", "applied", plan.number, plan.gate, attempt, ranks, ranks, ranks, steps=at)


def drift_of_receipts(cache: RunCache, number: int | None) -> dict[str, str]:
    """By hyperparameter of plan `number`, the ranks that do not use its value, according to their receipts."""
    receipts = cache.receipts.get(number, {}) if number is not None else {}
    return _by_name((rank, names) for receipt in receipts.values() for rank, names in receipt.drift.items())


def drift_now(cache: RunCache) -> dict[str, str]:
    """By hyperparameter, the ranks that do not use it as agreed, according to their latest reports."""
    return _by_name((rank, item.drift) for rank, item in cache.metrics.items())


def drift_sentence(drift: Mapping[str, str]) -> str:
    """`the optimizer of rank 0-7 does not hold lr: another part ...`; empty without drift."""
    if not drift:
        return ""
    named = ", ".join(f"the optimizer of rank {ranks} does not hold {name}" for name, ranks in drift.items())
    return f"{named}: {_DRIFT_CURE}"


def _by_name(found: Iterable[tuple[int, Iterable[str]]]) -> dict[str, str]:
    ranks: dict[str, set[int]] = {}
    for rank, names in found:
        for name in names:
            ranks.setdefault(name, set()).add(rank)
    return {name: format_ranks(ranks[name]) for name in sorted(ranks)}


def _lost(cache: RunCache) -> Outcome | None:
    """Until the ranks have reported what they hold, a plan of it may still be written back."""
    return "lost" if cache.epoch is not None and cache.epoch.settled else None
