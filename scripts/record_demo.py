"""Records the real demo in a pseudo-terminal and writes it as an animated SVG: `record_demo.py [docs/demo.svg]`.

The SVG needs no script and no font. Without animation it shows its last frame.
Pauses longer than a second are shortened to one, and it plays at double speed.
Needs pyte, a terminal emulator (`pip install pyte`).
"""

from __future__ import annotations

import fcntl
import html
import os
import pty
import re
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pyte

COLUMNS, ROWS = 112, 32
QUIET_S, SPEED, FRAME_S, LAST_S = 1.0, 2.0, 0.25, 8.0
LIMIT_BYTES = 400_000
CELL_W, CELL_H, MARGIN, BAR = 8.0, 18, 14, 30
COLOURS = {
    "default": "#d8dee9", "black": "#3b4252", "red": "#ff6b6b", "green": "#7ee787", "brown": "#e5c07b",
    "blue": "#79c0ff", "magenta": "#d2a8ff", "cyan": "#56d4dd", "white": "#e5e9f0", "brightblack": "#8b949e",
}  # fmt: skip
BACKGROUND = "#0d1117"

Run = tuple[int, str, str, bool]
"""Column, text, colour, bold."""
Line = tuple[Run, ...]
Frame = tuple[Line, ...]


def record(command: Sequence[str]) -> tuple[list[tuple[float, bytes]], int]:
    """The command's terminal output, with times in seconds, and its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS), LINES=str(ROWS))
        os.environ.pop("COLORTERM", None)
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    began, written = time.monotonic(), []
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # how Linux tells that the other end was closed
            break
        written.append((time.monotonic() - began, data))
        os.write(sys.stdout.fileno(), data)
    return written, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def played(written: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, Frame]]:
    """Frames with the time at which each appears, with long pauses shortened."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    now, before, shown = 0.0, 0.0, -1.0
    for at, data in written:
        now += min(at - before, QUIET_S) / SPEED
        before = at
        if now - shown >= FRAME_S:
            yield now, frame_of(screen)
            shown = now
        stream.feed(_without_faint(data))
    yield now + FRAME_S, frame_of(screen)


def frame_of(screen: pyte.Screen) -> Frame:
    return tuple(_line(screen, row) for row in range(ROWS))


def _line(screen: pyte.Screen, row: int) -> Line:
    cells = [screen.buffer[row][column] for column in range(COLUMNS)]
    runs, column = [], 0
    for (colour, bold), group in groupby(cells, key=lambda cell: (_colour(cell.fg), cell.bold)):
        text = "".join(cell.data for cell in group)
        if text.strip():
            start = len(text) - len(text.lstrip())
            runs.append((column + start, text.strip(), colour, bold))
        column += len(text)
    return tuple(runs)


def _colour(name: str) -> str:
    return COLOURS.get(name) or (f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else COLOURS["default"])


def _without_faint(data: bytes) -> bytes:
    """Replaces faint text, which pyte does not support, by grey."""

    def grey(found: re.Match[bytes]) -> bytes:
        codes = found[1].split(b";")
        plain = b"38" not in codes and b"48" not in codes
        return b"\x1b[" + b";".join(b"90" if plain and code == b"2" else code for code in codes) + b"m"

    return re.sub(rb"\x1b\[([0-9;]*)m", grey, data)


@dataclass
class Film:
    """All frames side by side in one strip that moves under a window; a repeated line is written once."""

    frames: list[tuple[float, Frame]]
    lines: dict[Line, str] = field(default_factory=dict)

    def svg(self) -> str:
        width = COLUMNS * CELL_W + 2 * MARGIN
        height = ROWS * CELL_H + 2 * MARGIN + BAR
        length_s = self.frames[-1][0] + LAST_S
        strip = "".join(self._frame(at * width, frame) for at, (_, frame) in enumerate(self.frames))
        moves = "".join(
            f"{moment / length_s:.4%}{{transform:translateX({-at * width:g}px)}}"
            for at, (moment, _) in enumerate(self.frames)
        )
        last = f"translateX({-(len(self.frames) - 1) * width:g}px)"
        symbols = "".join(f'<g id="{name}">{_texts(line)}</g>' for line, name in self.lines.items())
        dots = "".join(
            f'<circle cx="{MARGIN + 6 + 18 * at}" cy="18" r="5.5" fill="{colour}"/>'
            for at, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" '
            f'height="{height}" role="img" aria-label="instep demo in a terminal"><style>'
            "text{font:13.2px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}"
            f".b{{font-weight:bold}}#strip{{transform:{last}}}"
            f"@media (prefers-reduced-motion:no-preference){{#strip{{animation:play {length_s:.2f}s steps(1,end) "
            f"infinite}}}}@keyframes play{{0%{{transform:translateX(0)}}{moves}100%{{transform:{last}}}}}</style>"
            f'<rect width="{width:g}" height="{height}" rx="10" fill="{BACKGROUND}"/>{dots}'
            f'<defs>{symbols}</defs><svg y="{BAR + MARGIN}" width="{width:g}" height="{ROWS * CELL_H + 6}">'
            f'<g id="strip">{strip}</g></svg></svg>\n'
        )

    def _frame(self, left: float, frame: Frame) -> str:
        uses = (
            f'<use href="#{self.lines.setdefault(line, f"l{len(self.lines)}")}" y="{row * CELL_H}"/>'
            for row, line in enumerate(frame)
            if line
        )
        return f'<g transform="translate({left + MARGIN:g})">{"".join(uses)}</g>'


def _texts(line: Line) -> str:
    return "".join(_text(*run) for run in line)


def _text(column: int, text: str, colour: str, bold: bool) -> str:
    kind = ' class="b"' if bold else ""
    # Stretched to the grid, so any monospaced font fits.
    width = f'textLength="{len(text) * CELL_W:g}" lengthAdjust="spacingAndGlyphs"'
    shown = html.escape(text, quote=False).replace("  ", "\N{NO-BREAK SPACE}" * 2)
    return f'<text x="{column * CELL_W:g}" y="13" fill="{colour}"{kind} {width}>{shown}</text>'


def main() -> int:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/demo.svg")
    written, status = record([sys.executable, "-m", "instep", "demo"])
    if status != 0:
        print(f"the demo ended with status {status}: nothing was recorded", file=sys.stderr)
        return 1
    frames = [next(same) for _, same in groupby(played(written), key=lambda item: item[1])]
    svg = Film(frames).svg()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg)
    size = len(svg.encode())
    print(f"{path}: {len(frames)} frames, {size / 1000:.0f} kB, {frames[-1][0] + LAST_S:.0f} s a round")
    return 0 if size <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
