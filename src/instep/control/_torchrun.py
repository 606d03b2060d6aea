"""torchrun's rendezvous on etcd, and how often it may still restart workers. Pure.

Limit: the keys do not show whether a node that is not registered is dead or only cannot reach etcd. It counts as absent
here; the coordinator waits longer before it considers the node dead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from instep.control._report import JsonReport
from instep.etcd import KeyValue
from instep.protocol.keys import Keys
from instep.protocol.records import Elastic, Member, format_ranks
from instep.rendezvous.decision import (
    RegisteredNode,
    RendezvousSituation,
    RoundStatus,
    epoch_of,
    round_status,
)
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Cause, Closed, Departure, Limits, Refusal, Registration, Round, Seat
from instep.text import one_line

RendezvousState: TypeAlias = Literal["forming", "running", "closed", "stopped"]
"""forming: nodes wait for a round, or for the current one to be replaced. running: the nodes of a round run their
workers. closed: the run has ended, with success or failure. stopped: no node is registered, and no node closed it."""


MAX_NODES = 12
"""Nodes of a round, and nodes that wait, that a report lists."""
_REASONS = 3
SeatState: TypeAlias = Literal["running", "asking", "lost", "left", "died"]
"""running: its workers run. asking: they do not, and it waits for the next round. lost: it is not registered now. left:
it recorded its departure itself. died: another process recorded its death."""
_TROUBLE: tuple[SeatState, ...] = ("lost", "left", "died")


def rendezvous_keys(keys: Keys) -> RendezvousKeys:
    """Where the rendezvous of a run lives: its `--rdzv-id` is the run's name."""
    return RendezvousKeys(keys.namespace, keys.run)


@dataclass(slots=True)
class Rendezvous:
    """The keys of a rendezvous. Unreadable records are skipped, except the round's: `readable` is False then."""

    round: Round | None = None
    readable: bool = True
    closed: Closed | None = None
    nodes: dict[str, RegisteredNode] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    departed: dict[str, Departure | None] = field(default_factory=dict)
    """Nodes that have left permanently."""
    refused: dict[str, Refusal] = field(default_factory=dict)
    candidates: int = 0
    """Agents that are alive: each is a candidate for the coordinator."""
    empty: bool = True

    def put(self, path: list[str], kv: KeyValue) -> None:
        """Record one key; `path` is what follows `rendezvous/`."""
        self.empty = False
        match path:
            case ["state", "round"]:
                self.round = Round.decode_or_none(kv.value)
                self.readable = self.round is not None
            case ["state", "closed"]:
                self.closed = Closed.decode_or_none(kv.value)
            case ["state", "refused", node]:
                refusal = Refusal.decode_or_none(kv.value)
                if refusal is not None:
                    self.refused[node] = refusal
            case ["nodes", node]:
                said = Registration.decode_or_none(kv.value)
                if said is None:
                    self.unreadable.add(node)
                else:
                    self.nodes[node] = RegisteredNode(node, kv.create_revision, said)
            case ["gone", node]:
                self.departed[node] = Departure.decode_or_none(kv.value)
            case ["election", _]:
                self.candidates += 1

    @property
    def is_closed(self) -> bool:
        """Whether the last round has ended, and none has been formed since."""
        return self.closed is not None and self.current is None

    @property
    def current(self) -> Round | None:
        """The current round; None before the first, and after the run has been closed."""
        found = self.round
        return found if found is not None and found.epoch == epoch_of(found, self.closed) else None

    def status(self) -> RoundStatus:
        return round_status(
            RendezvousSituation(
                nodes=tuple(self.nodes.values()),
                unreadable=frozenset(self.unreadable),
                round=self.round,
                closed=self.closed,
                gone=frozenset(self.departed),
                refused=frozenset(self.refused),
                readable=self.readable,
            )
        )

    def state(self, status: RoundStatus) -> RendezvousState | None:
        """Its state; None for a run without a rendezvous."""
        if self.empty:
            return None
        if status.content:
            wanted = self.current.wanted if self.current is not None else self.readable
            return "forming" if wanted else "running"
        if status.asking:
            return "forming"
        if self.is_closed:
            return "closed"
        return "forming" if self.candidates else "stopped"


@dataclass(frozen=True, slots=True)
class NodeReport(JsonReport):
    """A node of the round. `ranks`, `restarts` and `max_restarts` are those of its workers, None if these do not call
    `instep.join`."""

    group_rank: int
    node: str
    host: str
    pid: int
    state: SeatState
    ranks: str | None
    restarts: int | None
    max_restarts: int | None


@dataclass(frozen=True, slots=True)
class NodeAsking(JsonReport):
    """A node that waits without a seat in the round. `spare`: the round is full, so it waits for a node to leave."""

    node: str
    host: str
    pid: int
    spare: bool


@dataclass(frozen=True, slots=True)
class RendezvousReport(JsonReport):
    """`--rdzv-backend=etcd3`. `round` is the number of the last round, 0 before the first; `size` its number of nodes,
    0 after the run is closed; `present` the number of registered nodes, spares included; `needed` how many more nodes
    the next round needs.

    `nodes` lists at most 12, preferring absent ones, by group rank; `lost` holds the group ranks of all absent nodes.
    `cause` is why the round was formed, `restarts` how many rounds were formed after failures.
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
    nodes: tuple[NodeReport, ...]
    nodes_more: int
    lost: str
    lost_count: int
    asking: tuple[NodeAsking, ...]
    asking_more: int
    spares: int
    closed: bool
    closed_by: str | None
    refused: tuple[str, ...]
    """Why nodes were refused: the first 3 reasons."""
    readable: bool
    """False if another version of Instep wrote the round."""


@dataclass(frozen=True, slots=True)
class RestartsReport(JsonReport):
    """The restarts of the node with the fewest left, among those with live workers; each node counts its own.
    `everywhere`: all nodes have the same count and limit."""

    count: int
    limit: int
    host: str
    everywhere: bool


def restarts_of(members: Iterable[Member]) -> RestartsReport | None:
    """None if torchrun started none of the live workers."""
    counts = [(member, member.elastic) for member in members if member.elastic is not None]
    if not counts:
        return None
    member, least = min(counts, key=lambda one: (one[1].max_restarts - one[1].restarts, -one[1].restarts, one[0].rank))
    same = {(elastic.restarts, elastic.max_restarts) for _, elastic in counts}
    return RestartsReport(least.restarts, least.max_restarts, member.host, len(same) == 1)


def rendezvous_of(known: Rendezvous, members: Iterable[Member]) -> RendezvousReport | None:
    """None if the run has no rendezvous."""
    status = known.status()
    state = known.state(status)
    if state is None:
        return None
    current, last, limits = known.current, known.round, _limits(known, status)
    nodes = _nodes(known, members)
    listed, lost = _listed(nodes), [node.group_rank for node in nodes if node.state in _TROUBLE]
    waiting = _waiting(known, status)
    present = len(status.content) + len(status.asking)
    return RendezvousReport(
        state=state,
        epoch=status.epoch if current is not None or status.asking or last is None else last.epoch,
        round=status.number,
        size=len(nodes),
        min_nodes=limits.min_nodes if limits is not None else None,
        max_nodes=limits.max_nodes if limits is not None else None,
        present=present,
        needed=max(0, limits.min_nodes - present) if limits is not None and state == "forming" else 0,
        wanted=current is not None and current.wanted,
        cause=current.cause if current is not None else None,
        restarts=last.restarts if last is not None else 0,
        nodes=listed,
        nodes_more=len(nodes) - len(listed),
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


def _limits(known: Rendezvous, status: RoundStatus) -> Limits | None:
    if status.limits is not None:
        return status.limits
    return known.round.limits if known.round is not None else None


def _nodes(known: Rendezvous, members: Iterable[Member]) -> list[NodeReport]:
    if known.current is None:
        return []
    ranks: dict[int | None, list[int]] = defaultdict(list)
    elastic: dict[int | None, Elastic] = {}
    for member in members:
        if member.elastic is not None:
            ranks[member.elastic.group_rank].append(member.rank)
            elastic[member.elastic.group_rank] = member.elastic
    return [
        NodeReport(
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


def _listed(nodes: list[NodeReport]) -> tuple[NodeReport, ...]:
    chosen = sorted(nodes, key=lambda node: (node.state not in _TROUBLE, node.group_rank))[:MAX_NODES]
    return tuple(sorted(chosen, key=lambda node: node.group_rank))


def _waiting(known: Rendezvous, status: RoundStatus) -> tuple[NodeAsking, ...]:
    current = known.current
    full = current is not None and len(status.content) >= current.limits.max_nodes
    return tuple(
        NodeAsking(item.node, item.registration.host, item.registration.pid, spare=full)
        for item in status.asking
        if current is None or current.rank_of(item.node) is None
    )


def _reasons(known: Rendezvous) -> tuple[str, ...]:
    counted = Counter(one_line(refusal.reason) for refusal in known.refused.values())
    return tuple(reason for reason, _ in counted.most_common(_REASONS))
