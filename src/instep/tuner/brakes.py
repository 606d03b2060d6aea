"""The brakes: everything that holds an action back, each with its figure and its limit. Pure."""

from __future__ import annotations

from typing import Final

from instep.tuner.rule_file import contradictions
from instep.tuner.sample import Sample
from instep.tuner.state import LedgerEntry, State
from instep.tuner.verdict import Brake

_MOST_RANKS: Final = 10**9


def brakes_of(state: State, sample: Sample, *, asks: bool) -> tuple[Brake, ...]:
    """What holds back any action now. `asks`: the action would be proposed to a person."""
    found = [*_input_brakes(state, sample), *_time_brakes(state, asks=asks)]
    if left(state) <= 0:
        brakes = state.rules.brakes
        if state.actions >= brakes.budget_per_run:
            found.append(Brake("budget", state.actions, f"{brakes.budget_per_run} actions per run"))
        else:
            limit = f"{brakes.budget_per_1000_steps} actions in 1000 steps"
            found.append(Brake("budget", _within_1000(state), limit))
    return tuple(found)


def left(state: State) -> int:
    """How many actions the budgets still allow."""
    brakes = state.rules.brakes
    return min(brakes.budget_per_run - state.actions, brakes.budget_per_1000_steps - _within_1000(state))


def is_open(state: State, entry: LedgerEntry) -> bool:
    """Whether the outcome of an action is still waited for."""
    return entry.outcome == "open" and state.ran - entry.ran < state.rules.brakes.answer_steps


def counts(state: State, entry: LedgerEntry) -> bool:
    """Whether an action was carried out or may yet be; a proposal that nobody has answered was not."""
    return entry.outcome in ("done", "rejected") or is_open(state, entry)


def _may_act(entry: LedgerEntry) -> bool:
    """Whether an action was carried out, or may be at any moment; a proposal waits for a person."""
    return entry.outcome == "done" or (entry.outcome == "open" and not entry.ask)


def _within_1000(state: State) -> int:
    return sum(state.ran - entry.ran < 1000 for entry in state.ledger)


def _input_brakes(state: State, sample: Sample) -> list[Brake]:
    """Comparisons are written so that a figure that is not a number brakes."""
    brakes = state.rules.brakes
    found: list[Brake] = []
    problems = contradictions(state.rules, sample.parameters)
    if problems:
        found.append(Brake("rule file", problems[0]))
    if sample.silenced:
        found.append(Brake("silenced"))
    if sample.paused:
        found.append(Brake("paused"))
    if not sample.age_s <= brakes.max_age_s:
        found.append(Brake("stale", sample.age_s, brakes.max_age_s))
    reporting, ranks = min(sample.reporting, _MOST_RANKS), min(sample.world_size, _MOST_RANKS)
    share = reporting / ranks if ranks > 0 else 0.0
    if not share >= brakes.min_reporting:
        found.append(Brake("partial", share, brakes.min_reporting))
    if sample.others_ill > 0:
        found.append(Brake("others ill", sample.others_ill, 0))
    return found


def _time_brakes(state: State, *, asks: bool) -> list[Brake]:
    brakes = state.rules.brakes
    found: list[Brake] = []
    if state.hold_off_ran is not None:
        since = state.ran - state.hold_off_ran
        if since < brakes.hold_off_steps:
            found.append(Brake("hold-off", since, f"{brakes.hold_off_steps} steps after {state.hold_off_why}"))
    last = max((entry.ran for entry in state.ledger if _may_act(entry)), default=None)
    if last is not None and state.ran - last < brakes.cool_down_steps:
        found.append(Brake("cool-down", state.ran - last, f"{brakes.cool_down_steps} steps after an action"))
    waiting = [entry for entry in state.ledger if is_open(state, entry) and (asks or not entry.ask)]
    if waiting:
        found.append(Brake("open action", waiting[-1].id))
    return found
