"""Records of who takes part: registrations, refusals, ranks that have left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from pydantic import Field, field_validator

from instep.coordination.records.base import Record, WorkerId, format_ranks, from_short, parse_ranks
from instep.names import INCARNATION_LENGTH
from instep.wire import PROTOCOL


class Elastic(Record):
    """What torchrun passed to a worker, for people; decisions use `run_id` only."""

    restarts: int = Field(ge=0)
    """How often its node's workers were started anew after a failure of their own; others' failures do not count."""
    max_restarts: int = Field(ge=0)
    group_rank: int | None = Field(default=None, ge=0)
    run_id: str = Field(default="", max_length=128)
    """The same for all workers that one torchrun job starts, in all its rounds; empty where that is not known."""


class Head(Record):
    """What a worker knows of the decisions: the newest that it knows to be committed, and the newest plan that it was
    told of and may have promised. As its agent knows, which never knows less than the worker."""

    plan: int
    digest: str
    told: int = 0


class Member(Record):
    """One registration of one worker; on its node's lease."""

    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    incarnation: str = Field(pattern=r"^[A-Za-z0-9]{1,32}$")
    node: str = Field(pattern=r"^[A-Za-z0-9-]{1,40}$")
    host: str
    pid: int
    schema_digest: str
    view: int = 0
    """The newest view that the worker was in, 0 for one that is new: only a new one can take a place."""
    max_restarts: int | None = Field(default=None, ge=0)
    """How often the run may start again after a failure, as far as this worker is concerned."""
    elastic: Elastic | None = None
    """None for a worker that torchrun did not start."""
    version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.+!_-]{1,64}$")
    """The agent's version of Instep; None before versions were registered."""
    take_over: bool = False
    """It may take the place of a process that trains."""
    protocol: int = PROTOCOL
    """Of the agent that wrote it. Members of another one cannot be in a view together."""
    head: Head | None = None
    """None for one that is new."""
    awaits: int = 0
    """Of a new one: the view that takes it for one that stays, in which it has yet to begin."""
    epoch: int = 0
    """The run's epoch when it was written: an earlier one may have been brought back with etcd's history."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)

    def may_replace(self, other: Member) -> bool:
        """Whether it may take the place of `other` while that one trains: it was asked to, or one torchrun job started
        both, in another round."""
        mine, theirs = (item.elastic.run_id if item.elastic is not None else "" for item in (self, other))
        return self.take_over or (mine != "" and mine == theirs)

    @property
    def can_be_named(self) -> bool:
        """Whether a view of this version can name it. Versions before protocol 3 drew shorter incarnations."""
        return self.protocol == PROTOCOL and len(self.incarnation) == INCARNATION_LENGTH


class NodeClaim(Record):
    """Which node holds a name: another node that happens to have the same name has another `claim`."""

    claim: str
    host: str = ""


class NodeMembers(Record):
    """The ranks of one node in a view: parallel, ranks rising; written short since a view may name 1280 nodes."""

    ranks: tuple[int, ...]
    incarnations: tuple[str, ...]


class Left(Record):
    """Ranks of a node that ended cleanly in `view`; `last_step` is the highest that one of them ran, -1 for none.

    They count as having promised only gates after that step: a gate at or before it they have passed unasked.
    """

    view: int
    ranks: tuple[int, ...]
    last_step: int = -1


class Refused(Record):
    """A registration that cannot become part of the run; where the reason is that of others too, one record for all."""

    incarnation: str
    rank: int
    reason: str
    also: tuple[str, str] = ("", "")
    """Further ones, as a view names those of a node: a run may have 10,240 ranks, and every agent reads this."""

    @classmethod
    def of(cls, workers: Iterable[WorkerId], reason: str) -> Self:
        """One record for all of them, at least one."""
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
    """Which ranks the next view still waits for; for those who wait, no decision looks at it."""

    world_size: int
    missing: str

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        return parse_ranks(self.missing)
