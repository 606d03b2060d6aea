"""`python -m chaos`: one session of random faults, its report, and its files."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import time
import traceback
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos import etcd_restores, fault_plan, report
from chaos.checks.run_history import RunHistory
from chaos.checks.verdicts import Finding, check_session, read_run_history
from chaos.harness import hosts_file
from chaos.harness.tasks import Background
from chaos.options import Options, failure_of, parse, say
from chaos.report import Report
from chaos.session import Session
from chaos.testbed import Testbed
from instep.testing import EtcdCluster

PROGRESS_S = 10.0
MAX_FAILURE = 40_000


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    hosts_file.enter()
    folder = Path(tempfile.mkdtemp(prefix="instep-chaos-"))
    say(f"seed {options.seed}, {options.duration_s:g} s; histories in {folder}")
    _log_to(folder / "clients.log")
    results = {part: asyncio.run(work) for part, work in _parts(options, folder)}
    passed = all(result.passed for result in results.values())
    for part, result in results.items():
        say(f"\n{part}: {result.table()}")
    if options.json is not None:
        options.json.write_text(json.dumps(_document(results, passed=passed), indent=1) + "\n")
    hosts_file.leave()
    return options.conclude(folder, passed=passed)


def _parts(options: Options, folder: Path) -> Iterator[tuple[str, Coroutine[Any, Any, Report]]]:
    if options.faults_s:
        yield "faults", _perform(options, _below(folder, "f"))
    if options.history_s:
        work = etcd_restores.perform(
            _below(folder, "h"), seed=options.seed, duration_s=options.history_s, version=options.version
        )
        yield "history", work


def _below(folder: Path, name: str) -> Path:
    """A short name: sockets lie below it."""
    path = folder / name
    path.mkdir()
    return path


def _document(results: Mapping[str, Report], *, passed: bool) -> dict[str, object]:
    """The report of the first part, with that of the second part in it."""
    first, *rest = [(part, result.as_json()) for part, result in results.items()]
    return {**first[1], **dict(rest), "passed": passed}


def _log_to(path: Path) -> None:
    """The log of the clients beside the run."""
    logger = logging.getLogger("instep")
    logger.addHandler(logging.FileHandler(path))
    logger.propagate = False


async def _perform(options: Options, folder: Path) -> Report:
    with EtcdCluster(members=fault_plan.MEMBERS, version=options.version, proxied=True) as cluster:
        async with Testbed(folder, cluster, options.seed) as testbed:
            return await _perform_on(testbed, options)


async def _perform_on(testbed: Testbed, options: Options) -> Report:
    failure: str | None = None
    plan = fault_plan.plan(options.seed, options.faults_s)
    fault_plan.save(plan, testbed.folder / "plan.jsonl")
    if testbed.servers.unsafe:
        say(f"etcd {testbed.version} can lose consistency in a crash: its members are stopped instead of killed")
    session = Session(testbed, plan, options.faults_s)
    try:
        async with Background([_report_progress(testbed)]):
            await session.run()
    except Exception as error:  # noqa: BLE001  # no error may pass for success, and its histories are kept
        failure = failure_of(error)
    if failure is not None:
        await testbed.keep_evidence()
    testbed.flush()
    history, findings = _checked(testbed, ended=failure is None)
    counts, recoveries = report.counts_of(testbed, history), report.recoveries_of(testbed)
    return Report(
        seed=options.seed,
        duration_s=options.faults_s,
        etcd=testbed.version,
        counts=counts,
        faults=report.faults_of(testbed),
        figures_s={**session.figures, **report.figures_of(testbed)},
        recoveries=recoveries,
        findings=[*findings, report.slow_recoveries(recoveries)],
        failure=failure[-MAX_FAILURE:] if failure else None,
        missed=[] if failure else report.too_few(counts, options.faults_s),
    )


def _checked(testbed: Testbed, *, ended: bool) -> tuple[RunHistory, list[Finding]]:
    """A history that cannot be checked is a finding too."""
    history = RunHistory(testbed.keys)
    try:
        history = read_run_history(testbed)
        return history, check_session(testbed, history, ended=ended)
    except Exception:  # noqa: BLE001  # the rest of the report is still needed
        return history, [Finding("The histories can be checked", "all of them", (traceback.format_exc(),))]


async def _report_progress(testbed: Testbed) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_S)
        injector, shared = testbed.injector, testbed.ranks.shared
        open_faults = ", ".join(fault.kind for fault in injector.open.values()) or "nothing broken"
        suspended = ", faults suspended" if injector.suspended else ""
        say(
            f"{time.monotonic() - began:5.0f} s  step {shared.lowest_arrived()}, {testbed.operator.puts} changes, "
            f"{sum(injector.done.values())} faults; now: {open_faults}{suspended}"
        )
