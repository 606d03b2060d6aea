"""`instep diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, show, talk

if TYPE_CHECKING:
    from rich.table import Table

    from instep.control import Diff


def diff(
    run: RunArgument,
    before: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A plan's number in 'instep history', 'v3' for the start of view 3, 'start', or 'now'."
        ),
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which values differ between two moments: as they were after plan A, and after plan B."""
    from instep import control

    for moment in (before, after):
        control.parse_moment(moment)
    found = with_run(lambda client, keys: control.diff(client, keys, before, after), run, etcd, namespace)
    if as_json:
        document(found.to_json())
    elif found.changes:
        show(_table(found))
    else:
        talk(f"no value of run {run} differs between {found.before} and {found.after}")


def _table(found: Diff) -> Table:
    from rich.table import Table

    from instep.control import format_value

    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column(overflow="fold")
    for change in found.changes:
        before = format_value(change.before) if change.was_set else "–"
        after = format_value(change.after) if change.is_set else "–"
        table.add_row(change.name, before, "→", after)
    return table
