"""What the tuner remembers between two samples: bounded, frozen, and serializable. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Final, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from instep.errors import SettingsError
from instep.scalar import Scalar
from instep.tuner.robust import Series
from instep.tuner.rules import Rules
from instep.tuner.sample import Past
from instep.tuner.verdict import Detection, Progress

STATE_VERSION: Final = 1
MAX_CHANGES: Final = 50
MAX_LEDGER: Final = 100
MAX_ABANDONED: Final = 100
MAX_METRICS: Final = 64
HoldOff: TypeAlias = Literal["a view change", "a restore", "a resume", "a person's change"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one rule remembers. Which fields it uses depends on its kind."""

    hits: tuple[tuple[int, int, int, int], ...] = ()
    """The newest points: first step, steps, how many of them met the condition, and how many a stricter one."""
    since: int | None = None
    """First step of the condition that holds now."""
    held: int = 0
    """Steps for which it has held."""
    best: float | None = None
    best_step: int | None = None
    detection: Detection | None = None
    progress: Progress = field(default_factory=Progress)
    announced: bool = False
    """Whether a verdict has said that it fires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of values, a restore or a new view that was not the tuner's."""

    step: int
    plan: int | None
    changes: Mapping[str, tuple[Scalar, Scalar]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry(Past):
    """One action, and what the decision remembers of it. `ran`: the steps that had been run when it was decided."""

    ran: int
    settled_ran: int | None = None
    """When its outcome became known."""
    before: float | None = None
    peak: float | None = None
    reverted: bool = False
    """Whether a revert of it was decided."""
    ask: bool = False

    @classmethod
    def of(cls, past: Past, ran: int) -> LedgerEntry:
        """An action that another tuner has decided."""
        told = {item.name: getattr(past, item.name) for item in fields(Past)}
        return cls(**told, ran=ran, settled_ran=ran)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that a decision knows of the past. `initial` makes the first one."""

    version: int = STATE_VERSION
    rules: Rules = field(default_factory=Rules)
    armed: tuple[str, ...] = ()
    """The rules that may act. The others only say what they would do (shadow mode)."""
    step: int = -1
    """The newest step."""
    ran: int = 0
    """Steps that were run, repeated ones included: all distances in time are counted in it."""
    view: int | None = None
    paused: bool = False
    series: Mapping[str, Series] = field(default_factory=dict)
    reported: tuple[str, ...] = ()
    """Metrics that were reported at least once."""
    finite: tuple[str, ...] = ()
    """Metrics that were finite at least once."""
    memories: Mapping[str, Memory] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    hold_off_ran: int | None = None
    """When the newest event happened after which nothing is done for some steps."""
    hold_off_why: HoldOff | None = None
    person_ran: int | None = None
    """When a person has changed the run for the last time."""
    ledger: tuple[LedgerEntry, ...] = ()
    actions: int = 0
    """How many were decided in the life of the run."""
    skipped_to: int = 0
    """The first data index that is not passed over, over all recoveries."""
    abandoned: tuple[str, ...] = ()
    """Checkpoints of steps that were taken back."""


def initial(rules: Rules | None = None, armed: tuple[str, ...] = ()) -> State:
    """The state before the first sample. `armed` names the rules that may act; `all` arms every rule.

    Raises SettingsError for a name that is not a rule.
    """
    rules = rules or Rules()
    for name in armed:
        if name != "all" and name not in rules.rules:
            raise SettingsError(f"there is no rule {name!r} to arm: the rules are {', '.join(rules.rules)}, or 'all'")
    names = tuple(rules.rules) if "all" in armed else tuple(dict.fromkeys(armed))
    return State(rules=rules, armed=names, memories={name: Memory() for name, _ in rules.enabled})


@cache
def _adapter() -> TypeAdapter[State]:
    return TypeAdapter(State)


def encode_state(state: State) -> str:
    """One line of JSON."""
    return _adapter().dump_json(state, by_alias=True).decode()


def decode_state(text: str | bytes) -> State:
    """Raises SettingsError if the text is not the state of a tuner of this version."""
    try:
        document = json.loads(text)
        version = document.get("version") if isinstance(document, dict) else None
        if version != STATE_VERSION:
            raise SettingsError(
                f"this state of a tuner has version {version}, this program reads version {STATE_VERSION}: "
                "start without it, or use the program that wrote it"
            )
        return _adapter().validate_json(text)
    except (ValueError, RecursionError, ValidationError) as error:
        raise SettingsError(f"this is not the state of a tuner: {str(error).splitlines()[0]}") from None
