"""`instep checkpoints`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, show, talk

if TYPE_CHECKING:
    from rich.table import Table

    from instep.control import Checkpoints


def checkpoints(
    run: RunArgument, etcd: EtcdOption = None, namespace: NamespaceOption = None, as_json: JsonOption = False
) -> None:
    """List the committed checkpoints, the newest first. A restart goes on from the one marked latest."""
    from instep import control

    found = with_run(control.checkpoints, run, etcd, namespace)
    if as_json:
        document(found.to_json())
    elif found.checkpoints:
        show(_table(found))
    else:
        talk(f"run {run} has no committed checkpoint")


def _table(found: Checkpoints) -> Table:
    from rich.table import Table
    from rich.text import Text

    from instep.cli._history import local_time
    from instep.cli._style import header
    from instep.control import format_bytes

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("checkpoint", "step", "size", "saved by", "committed", "path", ""):
        header(table, name, right=name in ("step", "size"))
    for item in found.checkpoints:
        table.add_row(
            item.id,
            str(item.step),
            format_bytes(item.bytes),
            f"rank {item.saved_by} on {item.host}",
            Text(local_time(item.committed_at), style="dim"),
            item.path,
            Text("latest", style="green") if item.latest else "",
        )
    return table
