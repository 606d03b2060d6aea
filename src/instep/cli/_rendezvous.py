"""What torchrun does, as rows of a run's status page: a dozen lines at most, however many nodes there are."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from instep.control import NodeAsking, NodeFacts, RendezvousFacts, RestartsFacts, Status

_NAMED = 3
_ALL = 6
"""Nodes of a round that are shown one by one; of a larger one `_FEW`, those that are not there before others."""
_FEW = 5
_CAUSES = {"failure": "formed after a failure", "membership": "formed because nodes came or went"}
_STYLES = {"asking": "yellow", "lost": "red", "died": "red", "left": "dim"}


def torchrun_rows(now: Status) -> Iterator[tuple[str, Text]]:
    """Labels and facts; nothing that is not so."""
    found = now.rendezvous
    if found is not None:
        yield "torchrun", _round(found)
        if found.asking:
            yield "waiting", _waiting(found)
        if found.lost and found.state != "stopped":
            yield "absent", Text(f"{_nodes(found.lost_count)} of the round, group rank {found.lost}", style="red")
        if found.refused:
            yield "refused", Text("; ".join(found.refused), style="red")
    if now.restarts is not None and now.restarts.limit:
        yield "restart", _restarts(now.restarts)


def nodes_table(found: RendezvousFacts) -> Table:
    """One line a node: group rank, where it is, the ranks of its workers, and how it is unless it runs."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", min_width=1)
    for node in shown(found):
        table.add_row(str(node.group_rank), f"{node.host}, pid {node.pid}", _of_node(node))
    more = found.size - len(shown(found))
    if more:
        table.add_row("", Text(f"and {more} more nodes", style="dim"), "")
    return table


def shown(found: RendezvousFacts) -> list[NodeFacts]:
    if found.size <= _ALL:
        return list(found.nodes)
    well = ("running", "asking")
    chosen = sorted(found.nodes, key=lambda node: (node.state in well, node.group_rank))[:_FEW]
    return sorted(chosen, key=lambda node: node.group_rank)


def _round(found: RendezvousFacts) -> Text:
    limits = "" if found.min_nodes is None else f"{found.min_nodes}:{found.max_nodes}"
    text = _of_state(found, limits)
    if found.restarts:
        text.append(f", {found.restarts} {'restart' if found.restarts == 1 else 'restarts'} after failures")
    if not found.readable:
        text.append("; it was written by another version of Instep", style="red")
    return text


def _of_state(found: RendezvousFacts, limits: str) -> Text:
    if found.state == "closed":
        by = f" by {found.closed_by}" if found.closed_by else ""
        return Text(f"closed{by} after round {found.round}" if found.round else f"closed{by} before its first round")
    if found.state == "stopped":
        unclosed = f", and round {found.round} was not closed" if found.round else ""
        return Text(f"no node is there{unclosed}", style="red")
    if found.state == "running" or found.wanted:
        text = Text(f"round {found.round}, {_nodes(found.size)} of {limits}")
        if found.cause in _CAUSES:
            text.append(f", {_CAUSES[found.cause]}")
        if found.wanted:
            needed = f": {_nodes(found.needed).replace(' ', ' more ')} needed" if found.needed else ""
            text.append(f", is being formed anew{needed}", style="yellow")
        return text
    return Text(f"round {found.round + 1} is being formed{_present(found, limits)}", style="yellow")


def _present(found: RendezvousFacts, limits: str) -> str:
    if not limits:
        return ""
    here = f": {_nodes(found.present)} of {limits} {'is' if found.present == 1 else 'are'} there"
    if found.needed:
        return f"{here}, {found.needed} more needed"
    return f"{here}, more may still come"


def _waiting(found: RendezvousFacts) -> Text:
    total = len(found.asking) + found.asking_more
    named = ", ".join(_place(node) for node in found.asking[:_NAMED])
    more = f" and {total - _NAMED} more" if total > _NAMED else ""
    why = ""
    if found.spares:
        why = ": a spare, the round is full" if total == 1 else f": {found.spares} spares, the round is full"
    return Text(f"{_nodes(total)}, {named}{more}{why}", style="yellow")


def _restarts(restarts: RestartsFacts) -> Text:
    where = "" if restarts.everywhere else f" on {restarts.host}"
    spent = restarts.count >= restarts.limit
    text = Text(f"{restarts.count} of {restarts.limit}{where} (torchrun)", style="yellow" if spent else "")
    if spent:
        text.append(": the next failure there ends it" if where else ": the next failure ends it")
    return text


def _of_node(node: NodeFacts) -> Text:
    text = Text("" if node.ranks is None else f"rank {node.ranks}")
    if node.restarts:
        text.append(f"{'  ' if text else ''}restart {node.restarts} of {node.max_restarts}", style="dim")
    if node.state != "running":
        text.append(f"{'  ' if text else ''}{node.state}", style=_STYLES.get(node.state, ""))
    return text


def _place(node: NodeAsking) -> str:
    return f"{node.host} (pid {node.pid})"


def _nodes(number: int) -> str:
    return f"{number} node{'' if number == 1 else 's'}"
