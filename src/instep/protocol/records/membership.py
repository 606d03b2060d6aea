"""Records of membership: registrations, refusals, ranks that have left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from pydantic import Field, field_validator

from instep.names import INCARNATION_LENGTH
from instep.protocol.records.base import Record, WorkerId, format_ranks, from_short, parse_ranks
from instep.wire import PROTOCOL
from instep.wire.documents import Elastic


class Head(Record):
    """What a worker knows of the decisions: the newest one that is committed, and in `told` the number of the newest
    plan that it received and may have promised. Its agent writes it, and never knows less than the worker."""

    plan: int
    digest: str
    told: int = 0


class Member(Record):
    """One registration of one worker, on its node's lease."""

    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    incarnation: str = Field(pattern=r"^[A-Za-z0-9]{1,32}$")
    node: str = Field(pattern=r"^[A-Za-z0-9-]{1,40}$")
    host: str
    pid: int
    schema_digest: str
    view: int = 0
    """The newest view of the worker; 0 for a new one. Only a new worker can take a rank."""
    max_restarts: int | None = Field(default=None, ge=0)
    """How often the run may restart after a failure, by this worker's setting."""
    elastic: Elastic | None = None
    """None for a worker that torchrun did not start."""
    version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.+!_-]{1,64}$")
    """The agent's version of Instep; None in old registrations."""
    take_over: bool = False
    """Whether it may replace a process that trains."""
    protocol: int = PROTOCOL
    """The protocol of the agent that wrote it. A view has members of one protocol only."""
    head: Head | None = None
    """None for a new worker."""
    awaits: int = 0
    """For a new worker: the view that counts it as staying, and in which it has not begun."""
    epoch: int = 0
    """The run's epoch when it was written: an earlier registration may come from restored history."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)

    def may_replace(self, other: Member) -> bool:
        """Whether it may replace `other` while that one trains: by its `take_over`, or because the same torchrun job
        started both."""
        mine, theirs = (item.elastic.run_id if item.elastic is not None else "" for item in (self, other))
        return self.take_over or (mine != "" and mine == theirs)

    @property
    def can_be_named(self) -> bool:
        """Whether a view of this version can name it: before protocol 3, incarnations were shorter."""
        return self.protocol == PROTOCOL and len(self.incarnation) == INCARNATION_LENGTH


class NodeClaim(Record):
    """Which node holds a name: another node with the same name has another `claim`."""

    claim: str
    host: str = ""


class NodeMembers(Record):
    """The ranks of one node in a view, and their incarnations. Rising; written short, because a view may name 1280
    nodes."""

    ranks: tuple[int, ...]
    incarnations: tuple[str, ...]


class Left(Record):
    """Ranks of a node that ended cleanly in `view`; `last_step` is the highest step that one of them ran, -1 for none.

    They count as having promised every gate after that step. They have passed gates up to it without a promise.
    """

    view: int
    ranks: tuple[int, ...]
    last_step: int = -1


class Refused(Record):
    """A registration that cannot become part of the run. One record covers all registrations with the same reason."""

    incarnation: str
    rank: int
    reason: str
    also: tuple[str, str] = ("", "")
    """Further workers, in the short form of a view: a run may have 10,240 ranks, and every agent reads this."""

    @classmethod
    def of(cls, workers: Iterable[WorkerId], reason: str) -> Self:
        """One record for all of the workers, of which there is at least one."""
        first, *others = sorted(workers)
        also = (format_ranks(worker.rank for worker in others), "".join(worker.incarnation for worker in others))
        return cls(incarnation=first.incarnation, rank=first.rank, reason=reason, also=also)

    @field_validator("also")
    @classmethod
    def _names_workers(cls, also: tuple[str, str]) -> tuple[str, str]:
        from_short(*also)
        return also

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)

    def workers(self) -> tuple[WorkerId, ...]:
        return (self.worker, *(WorkerId(*item) for item in zip(*from_short(*self.also), strict=True)))


class Forming(Record):
    """The ranks that the next view waits for. Shown to waiting workers; no decision reads it."""

    world_size: int
    missing: str

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        return parse_ranks(self.missing)
