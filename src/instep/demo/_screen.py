"""What the person sees: one page that grows, and two lines that move while it trains."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from instep.control import format_value
from instep.demo._checks import Check
from instep.demo._progress import Progress
from instep.text import one_line

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 32
_LINE_EVERY_S = 5.0


class Screen:
    """Text that came from etcd or a process is never read as markup. On a pipe the moving lines become lines."""

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
    def moving(self, now: Progress) -> Iterator[None]:
        """While it lasts, the progress is drawn at the foot of the page."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=lambda: _moving(now), console=self._console, refresh_per_second=8, transient=True):
            yield

    def progress(self, now: Progress) -> None:
        """Something has been reported: a line of it now and then, where nothing can move."""
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


def _moving(now: Progress) -> RenderableType:
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row("  ", ProgressBar(None, width=40, pulse=True, complete_style="cyan"), _at(now))
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row("  ", Text(_curve(now.losses).ljust(_CURVE), style="cyan"), _figures(now))
    return Group("", bar, line)


def _at(now: Progress) -> str:
    each_s = now.step_time_s
    pace = f", {each_s * 1000:.0f} ms a step" if each_s else ""
    return f"step {now.step}{pace}" if now.step >= 0 else "the ranks import torch and join"


def _figures(now: Progress) -> str:
    status = now.status
    if status is None:
        return ""
    loss = [f"loss {now.losses[-1]:.2f}"] if now.losses else []
    values = [f"{value.name} {format_value(value.agreed)}" for value in status.values if not value.fixed]
    return "  ".join([*loss, *values])


def _curve(losses: Sequence[float]) -> str:
    """The newest losses as a line of blocks."""
    shown = losses[-_CURVE:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((loss - low) * scale)] for loss in shown)


def exports(variables: dict[str, str]) -> list[str]:
    """Lines for a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
