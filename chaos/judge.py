"""All verdicts on what a session has left: the checkers of `instep.testing`, and the run's own rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from chaos import obedience
from chaos.board import Word
from chaos.chronicle import FIRST_REVISION, read_pages
from chaos.commands import CommandHistory
from chaos.faults import TTL_S, WORLD_SIZE
from chaos.lives import read_lives
from chaos.operator import FINAL, read_asked
from chaos.overlaps import without_excused
from chaos.registry import RegistryHistory, broken_files
from chaos.replay import Replay, is_final
from chaos.revisions import by_revision
from chaos.steps import StepRun, against_history, at_the_end, read_runs
from chaos.trainer import ACTION
from chaos.world import PREFIX, World
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
"""A fresh start takes what is desired at that moment: its steps owe nothing to those of the life before."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise: what was looked at, and a sentence for each time it was broken."""

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


def replay_of(world: World) -> Replay:
    replay = Replay(world.keys)
    for _, batch in read_pages(world.folder / "reference.jsonl"):
        replay.feed(batch.events)
    return replay


def told_by(world: World) -> tuple[CommandHistory, RegistryHistory]:
    """The commands and the checkpoints of the session."""
    commands, registry = CommandHistory(world.keys, [ACTION]), RegistryHistory(world.keys)
    for _, batch in read_pages(world.folder / "reference.jsonl"):
        for number, events in by_revision(batch.events):
            commands.revision(number, events)
            registry.revision(number, events)
    return commands, registry


def judge(world: World, replay: Replay, *, ended: bool) -> list[Finding]:
    """Everything that was promised, in the order of the house's goals.

    A session that did not end has a history that stops somewhere: what it lacks is not held against it.
    """
    runs = _runs(world)
    return [
        *_steps(runs, replay),
        *([_changes(runs, replay)] if ended else []),
        *_commands(world, ended=ended),
        Finding("One leader at a time, by its token", f"{replay.terms} terms", tuple(replay.problems)),
        *_watches(world, ended=ended),
        *_registers(world),
        *_bystanders(world),
        _calls(world),
    ]


def _runs(world: World) -> list[StepRun]:
    ranks = world.ranks
    return [run for rank in range(WORLD_SIZE) for run in read_runs(ranks.records(rank), ranks.lives(rank))]


def one_config_a_step(runs: Sequence[StepRun]) -> Finding:
    """The first promise, from what the ranks have written down alone."""
    configs = (ConfigRun(run.rank, run.first, run.last, config_digest(run.values), run.epoch) for run in runs)
    lives = {run.epoch for run in runs}
    verdict = check_steps(configs, exact_from=dict.fromkeys(lives, NOTHING_OWED))
    return _finding("No step is run with two configs", verdict)


def _steps(runs: Sequence[StepRun], replay: Replay) -> Iterator[Finding]:
    yield one_config_a_step(runs)
    steps, problems = against_history(runs, replay)
    yield Finding("Each step is run with what was agreed for it", f"{steps} steps", tuple(problems))


def _changes(runs: Sequence[StepRun], replay: Replay) -> Finding:
    problems = at_the_end(runs, FINAL, WORLD_SIZE)
    if not is_final(replay, FINAL):
        problems.append(f"agreed in the end: {replay.agreed!r}, desired: {replay.desired}")
    return Finding("No change is lost", f"{replay.commits} committed, {replay.aborts} aborted", tuple(problems))


def _commands(world: World, *, ended: bool) -> Iterator[Finding]:
    commands, registry = told_by(world)
    ranks = world.ranks
    lives = [life for rank in range(WORLD_SIZE) for life in read_lives(ranks.records(rank), ranks.begun(rank))]
    fates = ", ".join(f"{count} {fate}" for fate, count in sorted(commands.fates.items())) or "none"
    lost = commands.at_the_end() if ended else []
    yield Finding("No command is lost", fates, (*commands.problems, *lost))
    if not ended:
        return  # the history stops somewhere: the ranks have done more than it tells of
    count, problems = obedience.requests(lives, commands)
    yield Finding("A checkpoint is asked for in the same step on all ranks", f"{count} steps", tuple(problems))
    count, problems = obedience.actions(lives, commands)
    yield Finding("An action runs before the same step on all ranks, once", f"{count} runs of it", tuple(problems))
    count, problems = obedience.pauses(lives, commands, read_asked(world.folder / "commands.jsonl"))
    yield Finding("No step is run while the run is paused", f"{count} pauses", tuple(problems))
    count, problems = obedience.saves(lives, commands, registry)
    yield Finding("Savers are told the truth", f"{count} saves", tuple(problems))
    broken = broken_files(tuple(registry.standing.values()))
    looked_at = f"{len(registry.committed)} committed, {len(registry.standing)} kept"
    yield Finding("What is committed is one leader's, and whole", looked_at, (*registry.problems, *broken))


def _watches(world: World, *, ended: bool) -> Iterator[Finding]:
    """What the watch heard against what was read again, as far as that goes."""
    end = world.reference.next_revision - 1
    heard = (received("watcher", batch) for _, batch in read_pages(world.folder / "watched.jsonl"))
    start: list[WatchStarted | WatchReceived] = [WatchStarted("watcher", PREFIX, FIRST_REVISION)]
    records = chain(start, (item for item in heard if item.revision <= end))
    there = (received("", batch) for _, batch in read_pages(world.folder / "reference.jsonl"))
    events: Iterator[WatchEvent] = (event for item in there for event in item.events)
    reference = Reference(events, first_revision=FIRST_REVISION, last_revision=end)
    verdict = check_watch(records, reference, delivered_to=end if ended else 0)
    yield _finding("A watch hears every event once and in order", verdict)
    problem = world.watcher.problem
    yield Finding("A watch never ends by itself", f"{world.watcher.resumes} resumes", (problem,) if problem else ())


def _registers(world: World) -> Iterator[Finding]:
    operations = world.history.select(Operation)
    verdict = check_linearizability(operations, budget_s=LINEARIZABILITY_BUDGET_S)
    yield _finding("Reads and writes of keys are linearizable", verdict)


def _bystanders(world: World) -> Iterator[Finding]:
    holds = world.history.select(Hold)
    excused = without_excused(holds, world.servers.thaws, TTL_S)
    yield _finding("One holder at a time, tokens rise", check_exclusion(excused))
    yield _finding("Nothing is written below the highest token", check_fencing(_accepted(world)))


def _accepted(world: World) -> Iterator[Accepted]:
    """The writes of the guarded keys, in the order in which etcd took them."""
    prefix = f"{PREFIX}bystanders/resource/"
    for _, batch in read_pages(world.folder / "reference.jsonl"):
        for event in batch.events:
            if event.kv.key.startswith(prefix) and event.kind == "put":
                token, holder = event.kv.text.split()
                yield Accepted(event.kv.key.removeprefix(prefix), holder, int(token))


def _finding(promise: str, verdict: Verdict) -> Finding:
    looked_at = f"{verdict.checked} records{', ' + verdict.note if verdict.note else ''}"
    return Finding(promise, looked_at, () if verdict.passed else tuple(str(verdict).splitlines()))


def _calls(world: World) -> Finding:
    calls = world.calls
    return Finding("Every call ends within its time-out and a second", f"{calls.count} calls", tuple(calls.overruns))


def longest_boundary_s(world: World) -> float:
    return max(world.ranks.board.get(rank, Word.LONGEST_BOUNDARY_US) for rank in range(WORLD_SIZE)) / 1e6
