"""The demo as a command: exit code, interrupts, JSON document."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from rich.console import Console

from instep.demo._checks import Check, Evidence, check
from instep.demo._environment import Sandbox, check_needs
from instep.demo._scenario import DemoOptions, Scenario
from instep.demo._screen import Screen

_PIPED_WIDTH: Final = 120


def run_demo(options: DemoOptions, *, as_json: bool) -> int:
    """See `instep.demo.main`."""
    check_needs()
    screen = Screen(_console(as_json))
    began = time.monotonic()
    with _interruptible() as interrupted:
        scenario: Scenario | None = None
        try:
            with Sandbox() as sandbox:
                scenario = Scenario(options, sandbox, screen)
                evidence = asyncio.run(scenario.run())
        except KeyboardInterrupt:
            kept = scenario is not None and scenario.kept
            screen.end("ended" if kept else "interrupted", ", no process left")
            return 0 if kept else 128 + interrupted[-1]
    if evidence is None:
        screen.end("ended", ", no process left")
        return 0
    checks = check(evidence)
    took_s = time.monotonic() - began
    screen.heading("claims and results")
    screen.summary(checks, took_s)
    if as_json:
        document = _document(evidence, checks, scenario.etcd, took_s)
        print(json.dumps(document, ensure_ascii=False, indent=2))  # noqa: T201  # --json: stdout is for the document
    return 0 if all(item.held for item in checks) else 1


def _console(as_json: bool) -> Console:
    console = Console(stderr=as_json, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Makes SIGTERM and SIGHUP end the demo as Ctrl-C does. Yields the signals received."""
    came = [int(signal.SIGINT)]

    def interrupt(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        signal.raise_signal(signal.SIGINT)

    # A shell starts background jobs with SIGINT ignored.
    handlers: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
    handlers |= {signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _document(evidence: Evidence, checks: tuple[Check, ...], etcd: str, took_s: float) -> dict[str, Any]:
    return {
        "held": all(item.held for item in checks),
        "ranks": evidence.ranks,
        "steps": evidence.last_step + 1,
        "etcd": etcd,
        "took_s": round(took_s, 1),
        "changes": [steered.to_json() for steered in evidence.steered],
        "refused": evidence.refusal.to_json(),
        "takeover": evidence.takeover.to_json(),
        "pause": evidence.pause.to_json(),
        "stop": evidence.stop.to_json(),
        "without": [
            {"rank": item.rank, "step": item.first_step_with(evidence.baseline_lr), "sha256": item.after}
            for item in evidence.baseline
        ],
        "checks": [item.to_json() for item in checks],
    }
