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
from collections.abc import Sequence
from pathlib import Path

from chaos import faults, report
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
    folder = Path(tempfile.mkdtemp(prefix="instep-chaos-"))
    say(f"seed {options.seed}, {options.duration_s:g} s; histories in {folder}")
    _log_to(folder / "clients.log")
    result = asyncio.run(_perform(options, folder))
    say(result.table())
    if options.json is not None:
        options.json.write_text(json.dumps(result.as_json(), indent=1) + "\n")
    if result.passed and not options.keep:
        shutil.rmtree(folder)
    if not result.passed:
        say(f"chaos found something: seed {options.seed}. Repeat: {options.command}\nHistories: {folder}")
    return 0 if result.passed else 1


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
    plan = faults.plan(options.seed, options.duration_s)
    faults.save(plan, world.folder / "plan.jsonl")
    if world.servers.unsafe:
        say(f"etcd {world.version} can lose consistency in a crash: its members are stopped in order instead of killed")
    session = Session(world, plan, options.duration_s, say)
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
        duration_s=options.duration_s,
        etcd=world.version,
        counts=counts,
        faults=report.faults_of(world),
        figures_s={**session.figures, **report.figures_of(world)},
        recoveries=recoveries,
        findings=[*findings, report.slow_recoveries(recoveries)],
        failure=failure[-MAX_FAILURE:] if failure else None,
        missed=[] if failure else report.too_few(counts, options.duration_s),
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
