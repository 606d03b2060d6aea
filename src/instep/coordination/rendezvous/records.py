"""The documents of a rendezvous. JSON with a format number: reading one never runs code of whoever wrote it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import Field

from instep.coordination.records import Record

FORMAT: Final = 1
Cause: TypeAlias = Literal["new", "failure", "membership"]
"""Why a node asks: it has just started, its workers have failed, or it was told that the round is to be formed anew."""


class Address(Record):
    """Where a node serves the store that a round would use if that node had rank 0."""

    host: str
    port: int = Field(ge=1, le=65535)


class Limits(Record):
    """Of the number of nodes, torchrun's `--nnodes=MIN:MAX`."""

    min_nodes: int = Field(ge=1)
    max_nodes: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.min_nodes}:{self.max_nodes}"


class Registration(Record):
    """A node that is there, on its lease: content with its round, or asking for the next one."""

    format: Literal[1] = FORMAT
    epoch: int = Field(ge=1)
    host: str
    pid: int
    limits: Limits
    round: int = Field(default=0, ge=0)
    """The number of the round it was in last, 0 before its first."""
    asks: bool = False
    """True: its workers do not run, and it waits for a round after `round`."""
    cause: Cause = "new"
    store: Address | None = None
    """Fresh for each asking."""


class Seat(Record):
    """A node in a round; its place in the list is its group rank."""

    node: str
    host: str
    pid: int


class Round(Record):
    """The formation that holds. Written by the node that coordinates; by any node where etcd has lost it."""

    format: Literal[1] = FORMAT
    epoch: int = Field(ge=1)
    """Rises when a run id whose run has ended is used again."""
    number: int = Field(ge=0)
    """Rises with each round, over epochs too."""
    limits: Limits
    seats: tuple[Seat, ...] = ()
    store: Address | None = None
    """Rank 0's."""
    cause: Cause = "new"
    restarts: int = 0
    """Rounds of this epoch that were formed because workers had failed."""
    wanted: bool = False
    """The round is to be formed anew: all are to stop their workers and to ask."""

    def rank_of(self, node: str) -> int | None:
        return next((rank for rank, seat in enumerate(self.seats) if seat.node == node), None)

    def is_same_formation(self, other: Round) -> bool:
        """Whether the same nodes have met in the same store, whatever the numbers: a store is new for each round."""
        return bool(self.seats) and (self.seats, self.store) == (other.seats, other.store)


class Closed(Record):
    """Everything up to `epoch` has ended: its nodes form no round any more."""

    epoch: int = Field(ge=1)
    by: str = ""


class Refusal(Record):
    """Why a registered node cannot take part."""

    reason: str


class Departure(Record):
    """A node that has gone for good, and who says so."""

    by: Literal["itself", "guard"] = "itself"
