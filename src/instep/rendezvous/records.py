"""The documents of a rendezvous: JSON with a format number. Reading one never runs code of its writer."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import Field

from instep.protocol.records import Record

FORMAT: Final = 1
Cause: TypeAlias = Literal["new", "failure", "membership"]
"""Why a node asks: it has started, its workers have failed, or the round is formed again."""


class Address(Record):
    """Where a node serves the store that a round uses if the node has group rank 0."""

    host: str
    port: int = Field(ge=1, le=65535)


class Limits(Record):
    """The limits of torchrun's `--nnodes=MIN:MAX`."""

    min_nodes: int = Field(ge=1)
    max_nodes: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.min_nodes}:{self.max_nodes}"


class Registration(Record):
    """A live node, on its lease: it runs in its round, or asks for the next one."""

    format: Literal[1] = FORMAT
    epoch: int = Field(ge=1)
    host: str
    pid: int
    limits: Limits
    round: int = Field(default=0, ge=0)
    """The number of its last round; 0 before the first."""
    asks: bool = False
    """True if its workers do not run and it waits for a round after `round`."""
    cause: Cause = "new"
    store: Address | None = None
    """A new store for each request."""


class Seat(Record):
    """A node in a round; its index in the list is its group rank."""

    node: str
    host: str
    pid: int


class Round(Record):
    """The current formation. The coordinator writes it; if etcd has lost it, any node of it does."""

    format: Literal[1] = FORMAT
    epoch: int = Field(ge=1)
    """Rises when the run id of an ended run is used again."""
    number: int = Field(ge=0)
    """Rises with each round, across epochs."""
    limits: Limits
    seats: tuple[Seat, ...] = ()
    store: Address | None = None
    """The store of group rank 0."""
    cause: Cause = "new"
    restarts: int = 0
    """Rounds of this epoch that were formed because workers had failed."""
    wanted: bool = False
    """The round has to be formed again: all nodes stop their workers and ask."""

    def rank_of(self, node: str) -> int | None:
        return next((rank for rank, seat in enumerate(self.seats) if seat.node == node), None)

    def is_same_formation(self, other: Round) -> bool:
        """Whether both have the same nodes and the same store, even with different numbers: each round has a new
        store."""
        return bool(self.seats) and (self.seats, self.store) == (other.seats, other.store)


class Closed(Record):
    """Everything up to `epoch` has ended: its nodes form no further round."""

    epoch: int = Field(ge=1)
    by: str = ""


class Refusal(Record):
    """Why a registered node cannot take part."""

    reason: str


class Departure(Record):
    """A node that has left permanently, and the process that reported it."""

    by: Literal["itself", "guard"] = "itself"
