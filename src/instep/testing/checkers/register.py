"""One key of etcd as a register: what each operation may do to it. Pure.

Places in etcd's history are counted in halves, which gives a read a place between two writes: revision r is written
at 2r, and 2r + 1 sees it. A floor is the highest place that is known to be behind us.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from instep.testing.checkers.operation import CONDITIONAL, Operation, Value

UNBOUNDED: Final = 1 << 62


class State(NamedTuple):
    """The key between two operations. `value` is None if it does not exist.

    Its mod revision is `revision` when `exact`. Otherwise it was not told, and its place lies between `revision` (a
    place too, then) and `below`; it is none of `others`.
    """

    value: object
    revision: int
    exact: bool
    below: int = UNBOUNDED
    others: frozenset[int] = frozenset()

    def may_be(self, revision: int | None) -> bool:
        """Whether the mod revision can be this one."""
        if self.exact or revision is None:
            return self.revision == revision
        return self.revision < 2 * revision < self.below and revision not in self.others

    @property
    def possible(self) -> bool:
        """Whether any mod revision is still possible."""
        lowest, highest = self.revision // 2 + 1, (self.below - 1) // 2
        if self.exact or highest - lowest >= len(self.others):
            return True
        return any(revision not in self.others for revision in range(lowest, highest + 1))


_ABSENT: Final = State(None, 0, True)


@dataclass(slots=True)
class Act:
    """An operation, prepared for the search. `low` and `high` bound its place. `open`: it may never happen."""

    operation: Operation
    kind: str
    expected: Value | None
    value: Value | None
    applied: bool | None
    called_at: float
    returned_at: float
    revision: int | None = None
    mod_revision: int | None = None
    low: int = 0
    high: int = UNBOUNDED
    open: bool = False

    @property
    def writes(self) -> bool:
        """Whether it changes the key, if it happens."""
        return self.kind != "get" and self.applied is True

    @property
    def signature(self) -> tuple[str, Value | None, Value | None]:
        """Open acts with equal signatures are equivalent."""
        return self.kind, self.expected, self.value


def start(value: Value | None) -> State:
    """The state before the history."""
    return _ABSENT if value is None else State(value, 0, False)


def make_acts(operations: Iterable[Operation]) -> list[Act]:
    """One act for each operation, except reads without an answer."""
    return [_make(operation) for operation in operations if operation.kind != "get" or operation.reply is not None]


def bound(acts: Iterable[Act]) -> None:
    """Sets the bounds of each act's place from the known revisions."""
    acts = list(acts)
    written = sorted({act.revision for act in acts if act.writes and act.revision is not None} | _found(acts))
    following = dict(pairwise(written))
    for act in acts:
        reply = act.operation.reply
        told = None if reply is None or act.open else reply.revision
        if act.writes and act.revision is not None:
            act.low = act.high = 2 * act.revision
        elif not act.writes and not act.open and told is not None:
            # A delete that was not told whether there was anything may have written that revision itself.
            act.low, act.high = 2 * told + (act.kind != "delete" or act.applied is False), 2 * told + 1
        if act.kind == "get" and act.mod_revision is not None:
            after = following.get(act.mod_revision)
            act.low = max(act.low, 2 * act.mod_revision + 1)
            act.high = min(act.high, UNBOUNDED if after is None else 2 * after - 1)


def step(act: Act, state: State, floor: int) -> tuple[State, int] | None:
    """The state and the floor after `act`, or None if its answer is impossible.

    An act without a revision takes the lowest possible place. An open act without effect: None.
    """
    if act.kind == "cas_revision" and act.writes and isinstance(act.expected, int):
        floor = max(floor, 2 * act.expected)
    wrote = act.writes or (act.kind == "delete" and state.value is not None)
    place = max(floor // 2 * 2 + 2, act.low) if wrote else max(floor, act.low) | 1
    after = _answer(act, state, floor) if place <= act.high else None
    if after is None:
        return None
    if not after.exact and not wrote and act.high < after.below:
        after = after._replace(below=act.high)
    return (after, place) if after.possible else None


def _answer(act: Act, state: State, floor: int) -> State | None:
    if act.kind == "get":
        return _get(act, state)
    if act.kind == "delete":
        return _ABSENT if act.applied in (None, state.value is not None) else None
    if act.kind != "put" and not _compares(act, state):
        return None
    if not act.applied:
        return _refuse(act, state)
    return State(act.value, floor, False) if act.revision is None else State(act.value, act.revision, True)


def _make(operation: Operation) -> Act:
    reply, returned_at, args = operation.reply, operation.returned_at, operation.args
    # A compare that was not told how it went might as well be without an answer.
    vague = operation.kind in CONDITIONAL and (reply is None or reply.applied is None)
    known = reply is not None and returned_at is not None and not vague
    act = Act(
        operation,
        operation.kind,
        expected=args[0] if len(args) == 2 else None,
        value=args[-1] if args else None,
        applied=(True if operation.kind == "put" else reply.applied) if reply is not None and known else True,
        called_at=operation.called_at,
        returned_at=returned_at if returned_at is not None and known else float("inf"),
        open=not known,
    )
    if reply is not None and known:
        if operation.kind == "get":
            act.applied, act.value, act.mod_revision = None, reply.value, reply.mod_revision
        elif act.applied:
            act.revision = reply.revision
    return act


def _found(acts: list[Act]) -> set[int]:
    return {act.mod_revision for act in acts if act.mod_revision is not None}


def _get(act: Act, state: State) -> State | None:
    if act.value != state.value:
        return None
    if act.mod_revision is None or state.value is None:
        return state
    return State(state.value, act.mod_revision, True) if state.may_be(act.mod_revision) else None


def _refuse(act: Act, state: State) -> State:
    """Excludes the revision of a refused compare."""
    if act.kind == "cas_revision" and not state.exact and isinstance(act.expected, int):
        return state._replace(others=state.others | {act.expected})
    return state


def _compares(act: Act, state: State) -> bool:
    """Whether the compare is consistent with `applied`."""
    if act.kind == "cas_value":
        return (state.value == act.expected) is act.applied
    if act.kind == "create" or act.expected == 0:
        return (state.value is None) is act.applied
    if state.value is None or not isinstance(act.expected, int):
        return not act.applied
    if state.exact or act.applied:
        return state.may_be(act.expected) is act.applied
    return True
