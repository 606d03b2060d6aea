"""What is to be told of torchrun: its rendezvous on etcd, and how often it may still start workers anew. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from instep.control._facts import Facts
from instep.control._picture import Picture
from instep.control._rendezvous import Rendezvous, RendezvousState
from instep.protocol.records import Elastic, Member, format_ranks
from instep.rendezvous.decision import RoundStatus
from instep.rendezvous.records import Cause, Limits, Seat
from instep.text import one_line

MAX_NODES = 12
"""Nodes of a round, and nodes that wait, that are told one by one."""
_REASONS = 3

SeatState: TypeAlias = Literal["running", "asking", "lost", "left", "died"]
"""running: its workers run. asking: they do not, and it waits for the next round. lost: it is not registered now. left:
it has said goodbye. died: its death was seen."""
_TROUBLE: tuple[SeatState, ...] = ("lost", "left", "died")


@dataclass(frozen=True, slots=True)
class NodeFacts(Facts):
    """A node of the round. `ranks`, `restarts` and `max_restarts` are those of its workers, None where these do not
    call `instep.join`."""

    group_rank: int
    node: str
    host: str
    pid: int
    state: SeatState
    ranks: str | None
    restarts: int | None
    max_restarts: int | None


@dataclass(frozen=True, slots=True)
class NodeAsking(Facts):
    """A node that waits and has no seat in the round. `spare`: the round is full, so it waits for somebody to go."""

    node: str
    host: str
    pid: int
    spare: bool


@dataclass(frozen=True, slots=True)
class RendezvousFacts(Facts):
    """`--rdzv-backend=etcd3`. `round` is the number of the last one, 0 before the first; `size` how many nodes are in
    it, 0 once the run is closed; `present` how many nodes are there, spares included; `needed` how many more it takes
    to form one.

    `nodes` are 12 at most, those that are not there first in line, in order of group rank; `lost` are the group ranks
    of all that are not there. `cause` is why the round was formed, `restarts` how many were formed after failures.
    """

    state: RendezvousState
    epoch: int
    round: int
    size: int
    min_nodes: int | None
    max_nodes: int | None
    present: int
    needed: int
    wanted: bool
    cause: Cause | None
    restarts: int
    nodes: tuple[NodeFacts, ...]
    nodes_more: int
    lost: str
    lost_count: int
    asking: tuple[NodeAsking, ...]
    asking_more: int
    spares: int
    closed: bool
    closed_by: str | None
    refused: tuple[str, ...]
    """Why nodes could not take part: the first 3 reasons."""
    readable: bool
    """False where the round was written by another version of Instep."""


@dataclass(frozen=True, slots=True)
class RestartsFacts(Facts):
    """Of the node that has the fewest left, among those whose workers live; each node counts its own. `everywhere`:
    all have as many."""

    count: int
    limit: int
    host: str
    everywhere: bool


def restarts_of(picture: Picture) -> RestartsFacts | None:
    """None where no worker that lives was started by torchrun."""
    told = [(item.member, item.member.elastic) for item in picture.members.values() if item.member.elastic is not None]
    if not told:
        return None
    member, least = min(told, key=lambda one: (one[1].max_restarts - one[1].restarts, -one[1].restarts, one[0].rank))
    same = {(elastic.restarts, elastic.max_restarts) for _, elastic in told}
    return RestartsFacts(least.restarts, least.max_restarts, member.host, len(same) == 1)


def rendezvous_of(picture: Picture) -> RendezvousFacts | None:
    """None where the run has none."""
    known = picture.rendezvous
    standing = known.standing()
    state = known.state(standing)
    if state is None:
        return None
    current, last, limits = known.current, known.round, _limits(known, standing)
    nodes = _nodes(known, (item.member for item in picture.members.values()))
    told, lost = _told(nodes), [node.group_rank for node in nodes if node.state in _TROUBLE]
    waiting = _waiting(known, standing)
    present = len(standing.content) + len(standing.asking)
    return RendezvousFacts(
        state=state,
        epoch=standing.epoch if current is not None or standing.asking or last is None else last.epoch,
        round=standing.number,
        size=len(nodes),
        min_nodes=limits.min_nodes if limits is not None else None,
        max_nodes=limits.max_nodes if limits is not None else None,
        present=present,
        needed=max(0, limits.min_nodes - present) if limits is not None and state == "forming" else 0,
        wanted=current is not None and current.wanted,
        cause=current.cause if current is not None else None,
        restarts=last.restarts if last is not None else 0,
        nodes=told,
        nodes_more=len(nodes) - len(told),
        lost=format_ranks(lost),
        lost_count=len(lost),
        asking=waiting[:MAX_NODES],
        asking_more=max(0, len(waiting) - MAX_NODES),
        spares=sum(1 for node in waiting if node.spare),
        closed=known.is_closed,
        closed_by=known.closed.by if known.closed is not None and known.is_closed else None,
        refused=_reasons(known),
        readable=known.readable,
    )


def _limits(known: Rendezvous, standing: RoundStatus) -> Limits | None:
    if standing.limits is not None:
        return standing.limits
    return known.round.limits if known.round is not None else None


def _nodes(known: Rendezvous, members: Iterable[Member]) -> list[NodeFacts]:
    if known.current is None:
        return []
    ranks: dict[int | None, list[int]] = defaultdict(list)
    elastic: dict[int | None, Elastic] = {}
    for member in members:
        if member.elastic is not None:
            ranks[member.elastic.group_rank].append(member.rank)
            elastic[member.elastic.group_rank] = member.elastic
    return [
        NodeFacts(
            group_rank=number,
            node=seat.node,
            host=seat.host,
            pid=seat.pid,
            state=_state_of(known, seat),
            ranks=format_ranks(ranks[number]) if number in ranks else None,
            restarts=elastic[number].restarts if number in elastic else None,
            max_restarts=elastic[number].max_restarts if number in elastic else None,
        )
        for number, seat in enumerate(known.current.seats)
    ]


def _state_of(known: Rendezvous, seat: Seat) -> SeatState:
    if seat.node in known.departed:
        departure = known.departed[seat.node]
        return "left" if departure is not None and departure.by == "itself" else "died"
    registered = known.nodes.get(seat.node)
    if registered is None:
        return "lost"
    return "asking" if registered.registration.asks else "running"


def _told(nodes: list[NodeFacts]) -> tuple[NodeFacts, ...]:
    chosen = sorted(nodes, key=lambda node: (node.state not in _TROUBLE, node.group_rank))[:MAX_NODES]
    return tuple(sorted(chosen, key=lambda node: node.group_rank))


def _waiting(known: Rendezvous, standing: RoundStatus) -> tuple[NodeAsking, ...]:
    current = known.current
    full = current is not None and len(standing.content) >= current.limits.max_nodes
    return tuple(
        NodeAsking(item.node, item.registration.host, item.registration.pid, spare=full)
        for item in standing.asking
        if current is None or current.rank_of(item.node) is None
    )


def _reasons(known: Rendezvous) -> tuple[str, ...]:
    counted = Counter(one_line(refusal.reason) for refusal in known.refused.values())
    return tuple(reason for reason, _ in counted.most_common(_REASONS))
