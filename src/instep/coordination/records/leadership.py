"""Records of who leads, and of the epochs of a run."""

from __future__ import annotations

from pydantic import Field

from instep.coordination.records.base import Record, WorkerId
from instep.coordination.token import MAX_EPOCH


class Epoch(Record):
    """Why tokens given from now on order after all given before: etcd's history has gone back, or checkpoints were
    adopted of which etcd knew nothing. A run without this record is in epoch 0."""

    number: int = Field(ge=1, le=MAX_EPOCH)
    why: str
    """One sentence for people."""
    before: int | None = None
    """The highest revision of etcd that was seen before it went back, where that is known."""
    after: int | None = None
    """The revision at which that was noticed."""
    author: str | None = None
    """The author of an adoption; None where the run noticed by itself."""
    settled: bool = False
    """All workers that train have reported what they hold, and etcd holds that again: nothing is decided before."""
    plan: int = 0
    digest: str = ""
    """The newest decision that one of them held when it was settled: what else was promised before is aborted."""
    told: int = 0
    """The highest plan number that one of them had heard of: new ones come after it."""
    view: int = 0
    """The newest view that one of them had been in."""
    problem: str | None = None
    """Why it cannot be settled."""
    at: str | None = None
    """Wall clock of the host that wrote it, for people only."""


class Leader(Record):
    """Who leads; `token` is made of the run's epoch and the create revision of the candidate key (see token.py), and
    fences every guarded write."""

    node: str
    rank: int
    incarnation: str
    candidate: str
    token: int
    host: str = ""
    term: int = 0
    """How many have led the run so far, this one included; a worker that leads again counts again."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)


class Candidate(Record):
    """Whom a node's candidate names. The oldest one that stands leads."""

    node: str
    rank: int
    incarnation: str
    yielded: int = 0
    """How often it has made way since each worker of its node has led and stalled; 0 where one has not. Who leads and
    stalls too gains nothing by making way for one that has."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)


CAME_FIRST = "another rank of its node came first"
"""Why a leader made way before it had trained."""


class Term(Record):
    """One leadership as it was proclaimed, kept for people."""

    term: int = Field(ge=1)
    node: str
    rank: int
    host: str = ""
    token: int
    at: str | None = None
    """Wall clock of the leader's host, for people only."""
    why: str | None = None
    """How the one before it ended, as far as its successor could know."""


class Resigned(Record):
    """Why a node has taken its candidate away that had `token`."""

    token: int
    why: str
