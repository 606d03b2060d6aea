"""`instep runs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, with_client
from instep.cli._output import document, show, talk

if TYPE_CHECKING:
    from rich.table import Table

    from instep.control import Runs, RunSummary


def runs(etcd: EtcdOption = None, namespace: NamespaceOption = None, as_json: JsonOption = False) -> None:
    """List the runs that etcd knows: live or not, ranks, leader, step."""
    from instep import control

    found = with_client(control.runs, etcd, namespace)
    if as_json:
        document(found.to_json())
    elif found.runs:
        show(_table(found))
        if found.left_out:
            more = "1 more run is" if found.left_out == 1 else f"{found.left_out} more runs are"
            talk(
                f"{more} in {found.namespace}, changed longer ago than these: 'instep status RUN' shows one by its "
                "name, and 'instep delete RUN' deletes one that has ended"
            )
    else:
        talk(
            f"no run is in {found.namespace}: one appears when a training script calls instep.join, or torchrun "
            "is started with --rdzv-backend=etcd3"
        )


def _table(found: Runs) -> Table:
    from rich.table import Table

    from instep.cli._style import STATE, header

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    by_torchrun = any(run.round is not None for run in found.runs)
    for name in ("run", "state", "ranks", "step", "view", "leader", *(("torchrun",) if by_torchrun else ())):
        header(table, name, right=name in ("ranks", "step", "view"))
    for run in found.runs:
        leader = "" if run.leader_rank is None else f"rank {run.leader_rank} on {run.leader_host}"
        numbers = ("" if number is None else str(number) for number in (run.world_size, run.step, run.view))
        table.add_row(run.name, STATE.text(run.state), *numbers, leader, *((_torchrun(run),) if by_torchrun else ()))
    return table


def _torchrun(run: RunSummary) -> str:
    if not run.round:
        return ""
    return f"round {run.round}" + (f", {run.nodes} node{'' if run.nodes == 1 else 's'}" if run.nodes else "")
