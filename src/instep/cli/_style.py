"""The few colors there are: green is well, yellow waits, red needs a person, dim is what one rarely reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Palette:
    """A style for each word that facts use."""

    styles: Mapping[str, str]

    def text(self, word: str) -> Text:
        return Text(word, style=self.styles.get(word, ""))


STATE = Palette(
    {
        **dict.fromkeys(("training", "running"), "green"),
        **dict.fromkeys(("paused", "forming"), "yellow"),
        **dict.fromkeys(("ended", "closed", "new"), "dim"),
        "stopped": "red",
    }
)
OUTCOME = Palette(
    {
        **dict.fromkeys(("committed", "open", "aborted"), "yellow"),
        **dict.fromkeys(("rejected", "declined"), "red"),
        **dict.fromkeys(("applied", "started"), "green"),
    }
)


def header(table: Table, name: str, *, right: bool = False) -> None:
    table.add_column(name, justify="right" if right else "left", overflow="fold")
