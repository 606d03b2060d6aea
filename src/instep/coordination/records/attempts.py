"""Records of failures and of how often a run has failed."""

from __future__ import annotations

from pydantic import Field, field_validator

from instep.coordination.records.base import Record, parse_ranks


class Failure(Record):
    """How a rank of `view` ended that did not leave cleanly. `cause` is what is counted, `text` says more."""

    view: int
    rank: int
    host: str = ""
    cause: str
    text: str | None = None
    at: str | None = None
    """Wall clock of the rank's host, for people only."""


class Cleared(Record):
    """Who has cleared the count of failures, and how many there were."""

    failures: int
    author: str | None = None
    reason: str | None = None
    at: str | None = None
    """Wall clock of the host of who did it, for people only."""


class Attempts(Record):
    """Failures of the run since it ended cleanly, or since somebody cleared the count: one for each view that lost a
    rank, counted when that is replaced."""

    view: int = 0
    """The newest view of which it is known whether it counts."""
    counts: dict[str, int] = Field(default_factory=dict)
    """By cause."""
    failures: tuple[Failure, ...] = ()
    """The last 20, oldest first."""
    replaced: str = ""
    """Ranks that have been replaced since the last failure: all others were there when it happened."""
    cleared: Cleared | None = None

    @field_validator("replaced")
    @classmethod
    def _names_ranks(cls, text: str) -> str:
        parse_ranks(text)
        return text

    @property
    def total(self) -> int:
        return sum(self.counts.values())
