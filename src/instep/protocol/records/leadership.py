"""Records of leaders and candidates, and of the epochs of a run."""

from __future__ import annotations

from pydantic import Field

from instep.protocol.records.base import Record, WorkerId
from instep.recipes.token import MAX_EPOCH


class Epoch(Record):
    """An epoch of a run: its tokens are higher than all before. It begins when etcd's history has gone back, or when
    checkpoints were adopted that etcd did not know. A run without this record is in epoch 0."""

    number: int = Field(ge=1, le=MAX_EPOCH)
    why: str
    """One sentence for display."""
    before: int | None = None
    """The highest revision of etcd that was seen before it went back, if known."""
    after: int | None = None
    """The revision at which that was noticed."""
    author: str | None = None
    """The author of an adoption; None if the run noticed the change itself."""
    settled: bool = False
    """Whether all training workers have reported what they hold and etcd holds it again. Before that nothing is
    decided."""
    plan: int = 0
    digest: str = ""
    """The newest decision that a worker held when it was settled. Everything else that was promised is aborted."""
    told: int = 0
    """The highest plan number that a worker had received. New plans have higher numbers."""
    view: int = 0
    """The newest view that a worker had been in."""
    problem: str | None = None
    """Why it cannot be settled."""
    at: str | None = None
    """Wall clock of the host that wrote it, for display only."""


class Leader(Record):
    """The leader. `token` combines the run's epoch and the create revision of the candidate key (see token.py); it
    fences every guarded write."""

    node: str
    rank: int
    incarnation: str
    candidate: str
    token: int
    host: str = ""
    term: int = 0
    """The number of the term: how many leaders the run has had. A worker that leads again counts again."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)


class Candidate(Record):
    """The worker that a node's candidate names. The oldest candidate leads."""

    node: str
    rank: int
    incarnation: str
    yielded: int = 0
    """Times it yielded leadership since every worker on its node led and stalled; 0 if one did not. A leader that
    stalls too gains nothing by yielding to such a node."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)


CAME_FIRST = "another rank of its node came first"
"""Why a leader yielded before it had trained."""


class Term(Record):
    """One term, as it was proclaimed, for display."""

    term: int = Field(ge=1)
    node: str
    rank: int
    host: str = ""
    token: int
    at: str | None = None
    """Wall clock of the leader's host, for people only."""
    why: str | None = None
    """How the term before it ended, as far as its successor knew."""


class Resigned(Record):
    """Why a node withdrew the candidate with `token`."""

    token: int
    why: str
