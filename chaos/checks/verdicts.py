"""All findings about a session: the checkers of `instep.testing`, and the run's own rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from chaos.checks import compliance
from chaos.checks.commands import CommandHistory
from chaos.checks.rank_records import read_process_records
from chaos.checks.registry import RegistryHistory, broken_files
from chaos.checks.run_history import RunHistory, is_final
from chaos.checks.steps import StepRun, against_history, at_the_end, read_runs
from chaos.fault_plan import TTL_S, WORLD_SIZE
from chaos.harness.shared_state import Field
from chaos.operator import FINAL, read_asked
from chaos.recording import FIRST_REVISION, by_revision, read_event_log
from chaos.testbed import PREFIX, Testbed
from chaos.trainer import ACTION
from instep.testing.checkers import (
    Accepted,
    ConfigRun,
    Hold,
    Operation,
    Reference,
    Verdict,
    WatchEvent,
    WatchReceived,
    WatchStarted,
    check_exclusion,
    check_fencing,
    check_linearizability,
    check_steps,
    check_watch,
    config_digest,
    received,
)

LINEARIZABILITY_BUDGET_S = 30.0
SHOWN = 12
NOTHING_OWED = 2**62
"""A fresh start takes the values desired at that moment: its steps need not match those before it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise: what was checked, and a sentence for each violation."""

    promise: str
    looked_at: str
    problems: tuple[str, ...] = ()

    @property
    def held(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{'held  ' if self.held else 'BROKEN'}  {self.promise} ({self.looked_at})"]
        lines += [f"          {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"          and {len(self.problems) - SHOWN} more")
        return "\n".join(lines)


def read_run_history(testbed: Testbed) -> RunHistory:
    history = RunHistory(testbed.keys)
    for _, batch in read_event_log(testbed.folder / "reference.jsonl"):
        history.feed(batch.events)
    return history


def read_histories(testbed: Testbed) -> tuple[CommandHistory, RegistryHistory]:
    """The commands and the checkpoints of the session."""
    commands, registry = CommandHistory(testbed.keys, [ACTION]), RegistryHistory(testbed.keys)
    for _, batch in read_event_log(testbed.folder / "reference.jsonl"):
        for number, events in by_revision(batch.events):
            commands.revision(number, events)
            registry.revision(number, events)
    return commands, registry


def check_session(testbed: Testbed, history: RunHistory, *, ended: bool) -> list[Finding]:
    """One finding for each promise, in the order of the goals (ARCHITECTURE.md).

    The history of a session that did not end is incomplete: checks that need the rest are left out.
    """
    runs = _runs(testbed)
    return [
        *_steps(runs, history),
        *([_changes(runs, history)] if ended else []),
        *_commands(testbed, ended=ended),
        Finding("One leader at a time, by its token", f"{history.terms} terms", tuple(history.problems)),
        *_watches(testbed, ended=ended),
        *_registers(testbed),
        *_election_clients(testbed),
        _calls(testbed),
    ]


def _runs(testbed: Testbed) -> list[StepRun]:
    ranks = testbed.ranks
    return [run for rank in range(WORLD_SIZE) for run in read_runs(ranks.records(rank), ranks.lives(rank))]


def one_config_a_step(runs: Sequence[StepRun]) -> Finding:
    """The first promise, from the records of the ranks alone."""
    configs = (ConfigRun(run.rank, run.first, run.last, config_digest(run.values), run.epoch) for run in runs)
    lives = {run.epoch for run in runs}
    verdict = check_steps(configs, exact_from=dict.fromkeys(lives, NOTHING_OWED))
    return _finding("No step is run with two configs", verdict)


def _steps(runs: Sequence[StepRun], history: RunHistory) -> Iterator[Finding]:
    yield one_config_a_step(runs)
    steps, problems = against_history(runs, history)
    yield Finding("Each step is run with what was agreed for it", f"{steps} steps", tuple(problems))


def _changes(runs: Sequence[StepRun], history: RunHistory) -> Finding:
    problems = at_the_end(runs, FINAL, WORLD_SIZE)
    if not is_final(history, FINAL):
        problems.append(f"agreed in the end: {history.agreed!r}, desired: {history.desired}")
    return Finding("No change is lost", f"{history.commits} committed, {history.aborts} aborted", tuple(problems))


def _commands(testbed: Testbed, *, ended: bool) -> Iterator[Finding]:
    commands, registry = read_histories(testbed)
    ranks = testbed.ranks
    lives = [
        life for rank in range(WORLD_SIZE) for life in read_process_records(ranks.records(rank), ranks.step_log(rank))
    ]
    outcomes = ", ".join(f"{count} {fate}" for fate, count in sorted(commands.outcomes.items())) or "none"
    lost = commands.at_the_end() if ended else []
    yield Finding("No command is lost", outcomes, (*commands.problems, *lost))
    if not ended:
        return  # the history is incomplete: the ranks have done more than it has
    count, problems = compliance.requests(lives, commands)
    yield Finding("A checkpoint is asked for in the same step on all ranks", f"{count} steps", tuple(problems))
    count, problems = compliance.actions(lives, commands)
    yield Finding("An action runs before the same step on all ranks, once", f"{count} runs of it", tuple(problems))
    count, problems = compliance.pauses(lives, commands, read_asked(testbed.folder / "commands.jsonl"))
    yield Finding("No step is run while the run is paused", f"{count} pauses", tuple(problems))
    count, problems = compliance.saves(lives, commands, registry)
    yield Finding("Savers receive the true outcome", f"{count} saves", tuple(problems))
    broken = broken_files(tuple(registry.registered.values()))
    looked_at = f"{len(registry.committed)} committed, {len(registry.registered)} kept"
    yield Finding("What is committed is one leader's, and whole", looked_at, (*registry.problems, *broken))


def _watches(testbed: Testbed, *, ended: bool) -> Iterator[Finding]:
    """Checks what the long watch received against the reference, as far as the reference reaches."""
    end = testbed.reference.next_revision - 1
    heard = (received("watcher", batch) for _, batch in read_event_log(testbed.folder / "watched.jsonl"))
    start: list[WatchStarted | WatchReceived] = [WatchStarted("watcher", PREFIX, FIRST_REVISION)]
    records = chain(start, (item for item in heard if item.revision <= end))
    there = (received("", batch) for _, batch in read_event_log(testbed.folder / "reference.jsonl"))
    events: Iterator[WatchEvent] = (event for item in there for event in item.events)
    reference = Reference(events, first_revision=FIRST_REVISION, last_revision=end)
    verdict = check_watch(records, reference, delivered_to=end if ended else 0)
    yield _finding("A watch hears every event once and in order", verdict)
    problem = testbed.watcher.problem
    yield Finding("A watch never ends by itself", f"{testbed.watcher.resumes} resumes", (problem,) if problem else ())


def _registers(testbed: Testbed) -> Iterator[Finding]:
    operations = testbed.history.select(Operation)
    verdict = check_linearizability(operations, budget_s=LINEARIZABILITY_BUDGET_S)
    yield _finding("Reads and writes of keys are linearizable", verdict)


def _election_clients(testbed: Testbed) -> Iterator[Finding]:
    holds = testbed.history.select(Hold)
    excused = without_excused(holds, testbed.servers.thaws, TTL_S)
    yield _finding("One holder at a time, tokens rise", check_exclusion(excused))
    yield _finding("Nothing is written below the highest token", check_fencing(_accepted(testbed)))


def _accepted(testbed: Testbed) -> Iterator[Accepted]:
    """The writes of the guarded keys, in the order of their revisions."""
    prefix = f"{PREFIX}election-clients/resource/"
    for _, batch in read_event_log(testbed.folder / "reference.jsonl"):
        for event in batch.events:
            if event.kv.key.startswith(prefix) and event.kind == "put":
                token, holder = event.kv.text.split()
                yield Accepted(event.kv.key.removeprefix(prefix), holder, int(token))


def _finding(promise: str, verdict: Verdict) -> Finding:
    looked_at = f"{verdict.checked} records{', ' + verdict.note if verdict.note else ''}"
    return Finding(promise, looked_at, () if verdict.passed else tuple(str(verdict).splitlines()))


def _calls(testbed: Testbed) -> Finding:
    calls = testbed.calls
    return Finding("Every call ends within its timeout and a second", f"{calls.count} calls", tuple(calls.overruns))


def longest_boundary_s(testbed: Testbed) -> float:
    return max(testbed.ranks.shared.get(rank, Field.LONGEST_BOUNDARY_US) for rank in range(WORLD_SIZE)) / 1e6


def without_excused(holds: Iterable[Hold], thaws: Sequence[float], ttl_s: float) -> list[Hold]:
    """The holds, without the part of a belief that ended within a TTL after a thaw and came after it.

    A leader of etcd that was frozen for longer than a lease may end that lease when it resumes, on every version tried
    (docs/decisions/0008-leases.md). The holder learns of it with its next renewal or, if cut off, when the lease
    expires by its own clock: within a TTL. Fencing has no such allowance, and at any other time no holder may
    believe beyond the moment at which another one is admitted.
    """
    return [_less(hold, sorted(thaws), ttl_s) for hold in holds]


def _less(hold: Hold, thaws: Sequence[float], ttl_s: float) -> Hold:
    # The earliest thaw that excuses it: any of them may have ended its lease.
    woke = next((thaw for thaw in thaws if thaw <= hold.end <= thaw + ttl_s), None)
    return hold if woke is None else replace(hold, until=max(hold.acquired_at, woke))
