"""Take-overs, below the changes of `instep history`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from instep.control import Leading

SHOWN = 5


def take_overs(leaders: Iterable[Leading]) -> list[Leading]:
    """The newest few that say something: not those of a start, when ranks come one after the other."""
    return [leading for leading in leaders if leading.former_rank is not None and not leading.at_start][:SHOWN]


def leaders_table(leaders: Iterable[Leading]) -> Table:
    """One row a take-over: who leads since when, who led before, and how that ended."""
    from rich.table import Table
    from rich.text import Text

    from instep.cli._history import local_time

    table = Table.grid(padding=(0, 2, 0, 0))
    for no_wrap in (True, False):
        table.add_column(overflow="fold", no_wrap=no_wrap)
    for leading in leaders:
        since = Text(local_time(leading.since), style="dim")
        who = Text(f"rank {leading.rank} on {leading.host} leads")
        before = f"before it rank {leading.former_rank} on {leading.former_host}"
        who.append(f"; {before} ({leading.why or 'not known why'})", style="dim")
        table.add_row(since, who)
    return table
