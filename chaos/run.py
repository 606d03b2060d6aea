"""`python -m chaos`: one session, its report, and what is kept of it."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos import faults, history, names, report
from chaos.judge import Finding, judge, replay_of
from chaos.monitor import Hang
from chaos.options import Options, parse
from chaos.replay import Replay
from chaos.report import Report
from chaos.session import Failed, Session
from chaos.tasks import Background
from chaos.world import World
from instep.testing import EtcdCluster

PROGRESS_S = 10.0
MAX_FAILURE = 40_000


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    names.enter()
    folder = Path(tempfile.mkdtemp(prefix="instep-chaos-"))
    say(f"seed {options.seed}, {options.duration_s:g} s; histories in {folder}")
    _log_to(folder / "clients.log")
    results = {part: asyncio.run(work) for part, work in _parts(options, folder)}
    passed = all(result.passed for result in results.values())
    for part, result in results.items():
        say(f"\n{part}: {result.table()}")
    if options.json is not None:
        options.json.write_text(json.dumps(_document(results, passed=passed), indent=1) + "\n")
    if passed and not options.keep:
        shutil.rmtree(folder)
    names.leave()
    if not passed:
        say(f"chaos found something: seed {options.seed}. Repeat: {options.command}\nHistories: {folder}")
    return 0 if passed else 1


def _parts(options: Options, folder: Path) -> Iterator[tuple[str, Coroutine[Any, Any, Report]]]:
    if options.faults_s:
        yield "faults", _perform(options, _below(folder, "f"))
    if options.history_s:
        work = history.perform(
            _below(folder, "h"), seed=options.seed, duration_s=options.history_s, version=options.version, say=say
        )
        yield "history", work


def _below(folder: Path, name: str) -> Path:
    """A short name: sockets lie below it."""
    path = folder / name
    path.mkdir()
    return path


def _document(results: Mapping[str, Report], *, passed: bool) -> dict[str, object]:
    """The first part's report, and that of the second below it."""
    first, *rest = [(part, result.as_json()) for part, result in results.items()]
    return {**first[1], **dict(rest), "passed": passed}


def _log_to(path: Path) -> None:
    """What the clients beside the run have to say about all the faults."""
    logger = logging.getLogger("instep")
    logger.addHandler(logging.FileHandler(path))
    logger.propagate = False


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _perform(options: Options, folder: Path) -> Report:
    with EtcdCluster(members=faults.MEMBERS, version=options.version, proxied=True) as cluster:
        async with World(folder, cluster, options.seed) as world:
            return await _perform_on(world, options)


async def _perform_on(world: World, options: Options) -> Report:
    failure: str | None = None
    plan = faults.plan(options.seed, options.faults_s)
    faults.save(plan, world.folder / "plan.jsonl")
    if world.servers.unsafe:
        say(f"etcd {world.version} can lose consistency in a crash: its members are stopped in order instead of killed")
    session = Session(world, plan, options.faults_s, say)
    try:
        async with Background([_tell_progress(world)]):
            await session.run()
    except (Failed, Hang) as error:
        failure = str(error)
    except Exception:  # noqa: BLE001  # whatever the mishap, it must not pass for success, and its histories are kept
        failure = traceback.format_exc()
    if failure is not None:
        await world.keep_evidence()
    world.flush()
    replay, findings = _judged(world, ended=failure is None)
    counts, recoveries = report.counts_of(world, replay), report.recoveries_of(world)
    return Report(
        seed=options.seed,
        duration_s=options.faults_s,
        etcd=world.version,
        counts=counts,
        faults=report.faults_of(world),
        figures_s={**session.figures, **report.figures_of(world)},
        recoveries=recoveries,
        findings=[*findings, report.slow_recoveries(recoveries)],
        failure=failure[-MAX_FAILURE:] if failure else None,
        missed=[] if failure else report.too_few(counts, options.faults_s),
    )


def _judged(world: World, *, ended: bool) -> tuple[Replay, list[Finding]]:
    """A history that cannot be judged is a finding too."""
    replay = Replay(world.keys)
    try:
        replay = replay_of(world)
        return replay, judge(world, replay, ended=ended)
    except Exception:  # noqa: BLE001  # whatever it is, the rest of the report is still wanted
        return replay, [Finding("The histories can be judged", "all of them", (traceback.format_exc(),))]


async def _tell_progress(world: World) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_S)
        conductor, board = world.conductor, world.ranks.board
        open_faults = ", ".join(fault.kind for fault in conductor.open.values()) or "nothing broken"
        held = ", fire held" if conductor.held else ""
        say(
            f"{time.monotonic() - began:5.0f} s  step {board.lowest_arrived()}, {world.operator.puts} changes, "
            f"{sum(conductor.done.values())} faults; now: {open_faults}{held}"
        )
