"""The figures as text: a table for a terminal, and the table between two markers in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.figures import Figure

BEGIN = "<!-- figures: written by `python -m benchmarks --write` -->"
END = "<!-- end of figures -->"
HEAD = ("measure", "value", "target", "ratio", "ok")


def table(figures: Sequence[Figure]) -> str:
    """Columns of equal width."""
    rows = [HEAD, *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown(figures: Sequence[Figure], machine: Mapping[str, str]) -> str:
    """The block between the markers."""
    facts = "; ".join(f"{name} {value}" for name, value in machine.items())
    lines = [f"Measured with {facts}.", "", _row(HEAD), _row(["---"] * len(HEAD))]
    notes: list[str] = []
    for figure in figures:
        measure, *rest = figure.cells()
        if figure.note:
            notes.append(figure.note)
            measure += f" [{len(notes)}]"
        lines.append(_row([measure, *rest]))
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]
    return "\n".join(lines)


def replaced(page: str, block: str) -> str:
    """The page with the block between its markers. Raises ValueError if a marker is missing."""
    before, begin, rest = page.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
