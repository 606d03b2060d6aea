"""Whether all ranks did what was agreed at the same step: their records against etcd's history. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import inf

from chaos.checks.commands import CommandHistory, Generation, Pause
from chaos.checks.rank_records import ProcessRecord
from chaos.checks.registry import RegistryHistory

MAX_PROBLEMS = 50


def by_generation(
    lives: Sequence[ProcessRecord], history: CommandHistory
) -> list[tuple[Generation, list[ProcessRecord]]]:
    """The processes of each generation. Another check reports a process whose view was never formed."""
    found: dict[int, list[ProcessRecord]] = defaultdict(list)
    generations = {generation.view: generation for generation in history.generations}
    for life in lives:
        generation = history.generation_of(life.view)
        if generation is not None:
            found[generation.view].append(life)
    return [(generations[view], found[view]) for view in sorted(found)]


def requests(lives: Sequence[ProcessRecord], history: CommandHistory) -> tuple[int, list[str]]:
    """Every rank was asked for a checkpoint in exactly the steps of etcd's history, therefore all in the same steps.

    Returns how many steps were compared, and a sentence for each that differs.
    """
    count, problems = 0, []
    for generation, of_it in by_generation(lives, history):
        said = {step for life in of_it for step in life.requested}
        count += len(said | generation.saves)
        for life in of_it:
            missed = sorted(step for step in said | generation.saves if life.began(step) and step not in life.requested)
            problems += [f"{life} ran step {step} and was not asked for the checkpoint of it" for step in missed]
            invented = sorted(life.requested - generation.saves)
            problems += [
                f"{life} was asked for a checkpoint in step {step}, which was not agreed on" for step in invented
            ]
    return count, problems[:MAX_PROBLEMS]


def actions(lives: Sequence[ProcessRecord], history: CommandHistory) -> tuple[int, list[str]]:
    """Every rank that had promised an action ran it before the agreed step, once, and no other rank ran it.

    A rank has promised what was agreed on in its own view or a later one. A rank that died before that step need not
    have run it. The first step of a rank counts for a gate before it: a paused rank promises where it waits.
    """
    count, problems = 0, []
    for generation, of_it in by_generation(lives, history):
        for life in of_it:
            wanted = Counter(max(action.gate, life.first) for action in generation.actions if action.view >= life.view)
            count += life.acted.total()
            for step in sorted(wanted.keys() | life.acted.keys()):
                ran, agreed = life.acted[step], wanted[step]
                if ran > agreed:
                    problems.append(f"{life} ran an action {ran} times before step {step}, and {agreed} were agreed on")
                elif ran < agreed and life.began(step):
                    problems.append(f"{life} ran an action {ran} times before step {step}, of {agreed} agreed on")
    return count, problems[:MAX_PROBLEMS]


def pauses(
    lives: Sequence[ProcessRecord], history: CommandHistory, asked_at: Mapping[str, float]
) -> tuple[int, list[str]]:
    """No rank began a step at or after the gate of a pause before its end was requested.

    `asked_at` has the time when the put of each command began, by id: it was agreed on later.
    """
    count = 0
    problems: list[str] = []
    for generation, of_it in by_generation(lives, history):
        for pause in generation.pauses:
            count += 1
            problems += _ran_on(pause, of_it, asked_at)
    return count, problems[:MAX_PROBLEMS]


def _ran_on(pause: Pause, lives: Sequence[ProcessRecord], asked_at: Mapping[str, float]) -> Iterator[str]:
    until = inf if pause.ended_by is None else asked_at.get(pause.ended_by)
    if until is None:
        yield f"the pause before step {pause.gate} was ended by {pause.ended_by!r}, which was not requested"
        return
    for life in lives:
        first = life.first_from(pause.gate)
        if first is not None and first[1] < until:
            early_s = until - first[1]
            yield f"{life} began step {first[0]} {early_s:.3f} s too early: the run was paused before {pause.gate}"


def saves(lives: Sequence[ProcessRecord], history: CommandHistory, registry: RegistryHistory) -> tuple[int, list[str]]:
    """Savers received the outcome that etcd's history shows, and saved only what was requested."""
    count = 0
    problems: list[str] = []
    for life in lives:
        for line in life.saved:
            outcome, name = line["outcome"], line.get("id")
            count += name is not None
            there = name in registry.committed
            if outcome == "committed" and not there:
                problems.append(f"{life} received that checkpoint {name} was committed, and it never was")
            if outcome in ("fenced", "failed") and there:
                problems.append(f"{life} received that checkpoint {name} was {outcome}, and it was committed")
            kept = [forgotten for forgotten in line.get("forgotten", ()) if forgotten in registry.registered]
            problems += [f"{life} received that checkpoint {item} was forgotten, and it is registered" for item in kept]
    for manifest in registry.committed.values():
        generation = history.generation_of(manifest.view)
        if generation is None or manifest.step not in generation.saves:
            problems.append(f"checkpoint {manifest.id} was saved in view {manifest.view}, without a request")
    return count, problems[:MAX_PROBLEMS]
