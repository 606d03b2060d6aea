"""Hyperparameters as a table: the agreed value, and beside it what is desired instead, and why it waits."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from instep.control import Value, format_value

_STYLES = {"pending": "yellow", "rejected": "red"}


def values_table(values: Iterable[Value]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", min_width=1)  # else one that is empty takes its place from the others
    for value in values:
        agreed = format_value(value.agreed) if value.has_agreed else "–"
        table.add_row(value.name, agreed, _remark(value))
    return table


def _remark(value: Value) -> Text:
    if value.state == "agreed":
        return Text("fixed" if value.fixed else "", style="dim")
    remark = Text(f"→ {format_value(value.desired)} ", style=_STYLES[value.state])
    remark.append(f"{value.state}: {value.why}", style="")
    return remark
