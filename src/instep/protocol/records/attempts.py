"""Records of failures and of how often a run has failed."""

from __future__ import annotations

from pydantic import Field, field_validator

from instep.protocol.records.base import Record, parse_ranks


class RankFailure(Record):
    """How a rank of `view` failed. `cause` is counted; `text` has the details."""

    view: int
    rank: int
    host: str = ""
    cause: str
    text: str | None = None
    at: str | None = None
    """Wall clock of the rank's host, for display only."""


class Cleared(Record):
    """A reset of the failure count: its author, and the count before it."""

    failures: int
    author: str | None = None
    reason: str | None = None
    at: str | None = None
    """Wall clock of the author's host, for display only."""


class Attempts(Record):
    """Failures of the run since its last clean end or reset: one for each view that lost a rank, counted when the rank
    is replaced."""

    view: int = 0
    """The newest view that has been considered."""
    counts: dict[str, int] = Field(default_factory=dict)
    """By cause."""
    failures: tuple[RankFailure, ...] = ()
    """The last 20, oldest first."""
    replaced: str = ""
    """Ranks that were replaced since the last failure: all others were there when it happened."""
    cleared: Cleared | None = None

    @field_validator("replaced")
    @classmethod
    def _names_ranks(cls, text: str) -> str:
        parse_ranks(text)
        return text

    @property
    def total(self) -> int:
        return sum(self.counts.values())
