"""The rendezvous of torchrun's agents, as its keys in etcd tell it. Pure.

Limit: whether a node that is not registered is dead or only out of etcd's reach cannot be told from the keys. It counts
as absent here; the node that coordinates waits longer before it takes it for dead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from instep.etcd import KeyValue
from instep.protocol.keys import Keys
from instep.rendezvous.decision import (
    RegisteredNode,
    RendezvousSituation,
    RoundStatus,
    epoch_of,
    round_status,
)
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Closed, Departure, Refusal, Registration, Round

RendezvousState: TypeAlias = Literal["forming", "running", "closed", "stopped"]
"""forming: nodes wait for a round, or the one that stands is to be formed anew. running: the nodes of a round run their
workers. closed: the run has ended, well or not. stopped: no node is there, and nobody has closed it."""


def rendezvous_keys(keys: Keys) -> RendezvousKeys:
    """Where the rendezvous of a run lives: its `--rdzv-id` is the run's name."""
    return RendezvousKeys(keys.namespace, keys.run)


@dataclass(slots=True)
class Rendezvous:
    """What has been read of it. Unreadable records are passed over, but for the round's: `readable` is False then."""

    round: Round | None = None
    readable: bool = True
    closed: Closed | None = None
    nodes: dict[str, RegisteredNode] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    departed: dict[str, Departure | None] = field(default_factory=dict)
    """Nodes that will never come back."""
    refused: dict[str, Refusal] = field(default_factory=dict)
    candidates: int = 0
    """Agents that live: each would coordinate."""
    empty: bool = True

    def put(self, path: list[str], kv: KeyValue) -> None:
        """Take in one key, `path` being what follows `rendezvous/`."""
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
        """The round that holds; None before the first, and once the run has been closed."""
        found = self.round
        return found if found is not None and found.epoch == epoch_of(found, self.closed) else None

    def standing(self) -> RoundStatus:
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

    def state(self, standing: RoundStatus) -> RendezvousState | None:
        """In one word how it is; None where there is none."""
        if self.empty:
            return None
        if standing.content:
            anew = self.current.wanted if self.current is not None else self.readable
            return "forming" if anew else "running"
        if standing.asking:
            return "forming"
        if self.is_closed:
            return "closed"
        return "forming" if self.candidates else "stopped"
