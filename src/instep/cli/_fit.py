"""A page on a screen that is too low for it: every section keeps its beginning, the most important ones most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.style import Style

_LEAST = 4
"""Lines that a section gets before a more important one gets more: an empty one, its heading, one fact, and a mark."""


@dataclass(frozen=True, slots=True)
class Page:
    """`head` and `foot` are shown whole as far as there is room; `sections` in their order, `important` says which of
    them is cut last."""

    head: RenderableType
    sections: Sequence[RenderableType]
    important: Sequence[int]
    foot: RenderableType

    def whole(self) -> RenderableType:
        """All of it, on as many lines as it takes."""
        return Group(self.head, *self.sections, self.foot)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        height, loose = options.height or console.height, options.update(height=None)
        head, foot = (console.render_lines(part, loose, pad=False) for part in (self.head, self.foot))
        sections = [console.render_lines(part, loose, pad=False) for part in self.sections]
        room = max(0, height - len(foot))
        given = shares([len(head), *map(len, sections)], [0, *(number + 1 for number in self.important)], room)
        mark = [Segment("  …", Style(dim=True))]
        for lines, share in zip([head, *sections], given, strict=True):
            shown = lines if share >= len(lines) else [*lines[: share - 1], mark][:share]
            for line in shown:
                yield from line
                yield Segment.line()
        for line in foot[:height]:
            yield from line
            yield Segment.line()


def shares(sizes: Sequence[int], important: Sequence[int], room: int) -> list[int]:
    """How many lines each section gets. The first in `important` gets all it needs, then each a few, then the rest in
    turn; where that would be hardly more than its heading, it gets none. Pure."""
    given = [0] * len(sizes)
    first, *others = important
    for number, most in [(first, room), *((one, _LEAST) for one in others), *((one, room) for one in others)]:
        given[number] += min(sizes[number] - given[number], max(0, most - given[number]), room - sum(given))
    poor = [number for number in others if 0 < given[number] < min(_LEAST, sizes[number])]
    if not poor:
        return given
    return shares([0 if number == poor[-1] else size for number, size in enumerate(sizes)], important, room)
