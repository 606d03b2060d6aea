"""The demo's output: a growing page, and two live lines of progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from instep.control import HistoryEntry, Keys, RunStatus, format_value, watch_status
from instep.demo._checks import Check
from instep.errors import RunNotFound
from instep.etcd import Client
from instep.text import one_line

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 32
_LINE_EVERY_S = 5.0

_POLL_S = 0.1


class Screen:
    """Never interprets text from etcd or a process as markup. On a pipe, prints progress as plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._heading = 0
        self._line_at = 0.0

    def title(self, text: str, detail: str) -> None:
        self._print(Text.assemble((text, "bold"), "  ", (detail, "dim")))

    def heading(self, text: str, detail: str = "") -> None:
        self._heading += 1
        self._print(Text.assemble("\n", (f"{self._heading}  {text}", "bold cyan"), "  ", (detail, "dim")))

    def say(self, text: str, style: str = "") -> None:
        self._print(Padding(Text(text, style=style), (0, 0, 0, 3), expand=False))

    def command(self, text: str) -> None:
        self._print(Padding(Text.assemble(("$ ", "dim"), (text, "bold")), (0, 0, 0, 3), expand=False))

    def receipt(self, sentence: str, *, good: bool) -> None:
        mark = ("✓ ", "bold green") if good else ("✗ ", "bold red")
        self._print(Padding(Text.assemble(mark, one_line(sentence)), (0, 0, 0, 3), expand=False))

    @contextmanager
    def moving(self, now: DemoProgress) -> Iterator[None]:
        """Draws live progress at the bottom of the page while the block runs."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=lambda: _moving(now), console=self._console, refresh_per_second=8, transient=True):
            yield

    def progress(self, now: DemoProgress) -> None:
        """Prints a progress line from time to time if the output is not a terminal."""
        if self._console.is_terminal:
            return
        if time.monotonic() - self._line_at >= _LINE_EVERY_S and now.step > -1:
            self._line_at = time.monotonic()
            self.say(f"{_at(now)}  {_figures(now)}", style="dim")

    def summary(self, checks: Sequence[Check], took_s: float) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
        for header, style in (("", ""), ("claim", ""), ("checked by", "dim"), ("found", "")):
            table.add_column(header, style=style, overflow="fold")
        for item in checks:
            mark = Text("✓", style="bold green") if item.held else Text("✗", style="bold red")
            table.add_row(mark, item.claim, one_line(item.how), one_line(item.found))
        self._print(Padding(table, (0, 0, 0, 3), expand=False))
        failed = sum(1 for item in checks if not item.held)
        verdict = f"{failed} of {len(checks)} claims did not hold" if failed else f"all {len(checks)} claims held"
        self.end(verdict, f", {took_s:.0f} s", style="bold red" if failed else "bold green")

    def end(self, verdict: str, detail: str, *, style: str = "bold") -> None:
        self._print(Text.assemble("\n", (verdict, style), detail))

    def _print(self, what: RenderableType) -> None:
        self._console.print(what)


def _moving(now: DemoProgress) -> RenderableType:
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row("  ", ProgressBar(None, width=40, pulse=True, complete_style="cyan"), _at(now))
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row("  ", Text(_curve(now.losses).ljust(_CURVE), style="cyan"), _figures(now))
    return Group("", bar, line)


def _at(now: DemoProgress) -> str:
    each_s = now.step_time_s
    pace = f", {each_s * 1000:.0f} ms a step" if each_s else ""
    return f"step {now.step}{pace}" if now.step >= 0 else "the ranks import torch and join"


def _figures(now: DemoProgress) -> str:
    status = now.status
    if status is None:
        return ""
    loss = [f"loss {now.losses[-1]:.2f}"] if now.losses else []
    values = [f"{value.name} {format_value(value.agreed)}" for value in status.values if not value.fixed]
    return "  ".join([*loss, *values])


def _curve(losses: Sequence[float]) -> str:
    """The newest losses as a line of block characters."""
    shown = losses[-_CURVE:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((loss - low) * scale)] for loss in shown)


class DemoProgress:
    """The newest status, and the step that the ranks have reached by now.

    Ranks report about once a second. Between two reports, the step is extrapolated from the step time.
    """

    def __init__(self, client: Client, keys: Keys, show: Callable[[DemoProgress], None]) -> None:
        self.status: RunStatus | None = None
        self.losses: list[float] = []
        self.entries: list[HistoryEntry] = []
        self._client = client
        self._keys = keys
        self._show = show
        self._reported = (-1, 0.0)

    @property
    def step(self) -> int:
        """The approximate step of the slowest rank; -1 before the first step."""
        step, at = self._reported
        each_s = self.step_time_s
        return step + int((time.monotonic() - at) / each_s) if step >= 0 and each_s and self.trains else step

    @property
    def view(self) -> int:
        """The number of the view; 0 before the first."""
        return self.status.view.number if self.status and self.status.view else 0

    @property
    def trains(self) -> bool:
        return self.status is not None and self.status.state == "training"

    @property
    def step_time_s(self) -> float | None:
        steps = self.status.steps if self.status else None
        return steps.step_time_s if steps else None

    async def watch(self) -> None:
        """Follows the run until cancelled."""
        while True:
            try:
                async with aclosing(watch_status(self._client, self._keys, tick_s=0.5)) as statuses:
                    async for status in statuses:
                        self._take(status)
            except RunNotFound:
                await asyncio.sleep(_POLL_S)  # the first rank has not joined yet

    async def wait_steps(self, steps: int, training: asyncio.Task[None]) -> None:
        """Waits until the ranks have reported `steps` more steps, or training has ended."""
        while self._reported[0] < 0 and not training.done():  # noqa: ASYNC110  # set by a status, once a second
            await asyncio.sleep(_POLL_S)
        until = self._reported[0] + steps
        while self._reported[0] < until and not training.done():  # noqa: ASYNC110  # the same
            await asyncio.sleep(_POLL_S)

    async def wait_for_view(self, number: int, training: asyncio.Task[None]) -> None:
        """Waits until that view trains, or training has ended."""
        while not (self.view >= number and self.trains) and not training.done():  # noqa: ASYNC110  # set by a status
            await asyncio.sleep(_POLL_S)
        self._reported = (-1, 0.0)

    def _take(self, status: RunStatus) -> None:
        self.status = status
        if status.steps is not None and status.steps.lowest > self._reported[0]:
            self._reported = (status.steps.lowest, time.monotonic())
            if "loss" in status.steps.metrics:
                self.losses.append(status.steps.metrics["loss"])
        known = {entry.plan for entry in self.entries}
        self.entries += [entry for entry in reversed(status.recent) if entry.plan not in known]
        self._show(self)
