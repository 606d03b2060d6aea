"""What a leader can do next: each becomes one guarded txn (see transactions.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from instep.coordination.assembly import LetThrough
from instep.coordination.records import (
    Agreed,
    Attempts,
    Decision,
    Declined,
    Forming,
    Plan,
    Refused,
    Rejected,
    Resume,
    StartChange,
    View,
    WorkerId,
)
from instep.coordination.schema import Schema
from instep.coordination.trial import Trial

MAX_TIDIED = 30
MAX_DECLINED = 40
MAX_SCHEMAS_TIDIED = 5
"""Records of a kind deleted by one txn; etcd allows 128 operations."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Writes what was deleted as it was; refused for a key that is there again."""

    lost: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FormView:
    view: View
    agreed: Agreed
    schema: Schema
    rejections: tuple[Rejected, ...]
    abort_plan: int | None
    """An undecided plan of the view before: its abort is part of the same txn, so it can no longer be committed."""
    trial: Trial | None = None
    """To be tried by a worker of the view first."""
    at: str | None = None
    """Wall clock, for people only."""
    attempts: Attempts | None = None
    """What is known of failures then; None when nothing is new."""
    changes: tuple[StartChange, ...] = ()
    """Of a fresh view: the changes made since the last plan that it starts with."""


@dataclass(frozen=True, slots=True)
class Refuse:
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class TurnAway:
    """Newcomers of a run that has failed too often. Refused when somebody has cleared the count since."""

    refused: tuple[Refused, ...]
    attempts: Attempts | None
    """What is known of failures then; None when nothing is new."""


@dataclass(frozen=True, slots=True)
class OpenPlan:
    plan: Plan


@dataclass(frozen=True, slots=True)
class Commit:
    plan: Plan
    agreed: Agreed


@dataclass(frozen=True, slots=True)
class Abort:
    number: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Reject:
    rejections: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class Decline:
    """Commands that are not carried out, by id."""

    declined: tuple[tuple[str, Declined], ...]


@dataclass(frozen=True, slots=True)
class Tidy:
    """Records that speak of values which no longer stand, or that are done with."""

    rejections: tuple[str, ...]
    changes: tuple[str, ...]
    declined: tuple[str, ...] = ()
    refusals: tuple[WorkerId, ...] = ()
    schemas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """Which checkpoint the ranks are asked about next, or all go on from."""

    resume: Resume


@dataclass(frozen=True, slots=True)
class Announce:
    """Tells those who wait which ranks are missing."""

    forming: Forming


Action = (
    Announce
    | Ask
    | FormView
    | LetThrough
    | Refuse
    | TurnAway
    | OpenPlan
    | Commit
    | Abort
    | Decline
    | Reject
    | Restore
    | Tidy
)
