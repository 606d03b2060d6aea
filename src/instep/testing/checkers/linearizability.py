"""Linearizability: every operation appears to happen at one moment between its call and its return.

M. Herlihy and J. Wing, "Linearizability: A Correctness Condition for Concurrent Objects" (1990). Keys are checked one
by one, which is enough for the whole when every operation is on one key (there, as locality; A. Horn and D. Kroening,
"Faster Linearizability Checking via P-Compositionality", 2015). `search` cites what the search is after.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from instep.errors import SettingsError
from instep.testing.checkers.operation import ARGUMENTS, Operation, Value
from instep.testing.checkers.register import bound, make_acts, start
from instep.testing.checkers.search import Budget, Search
from instep.testing.checkers.settle import from_nowhere, merge_unseen, settle
from instep.testing.checkers.verdict import MOST_KEPT, Answer, Verdict, Violation

_NAME = "linearizability"


def check_linearizability(
    operations: Iterable[Operation],
    *,
    initial: Mapping[str, Value] | None = None,
    budget_s: float = 30.0,
    max_states: int = 5_000_000,
    clock: Callable[[], float] = time.monotonic,
) -> Verdict:
    """Whether the operations of each key have an order that explains every answer and respects real time.

    Kinds: get, put, delete, create, cas_revision and cas_value, on keys that nothing else writes to. `initial` has the
    values from before; other keys did not exist. Reported revisions must fit too. An operation with an unknown outcome
    may take effect at any time after its call, or never. The search ends after about `budget_s` seconds of `clock`, or
    `max_states` situations; what is not decided by then is `undecided`. A no includes the shortest prefix of one key's
    history that cannot be explained, as far as time allows. Limit: transactions on two keys, and the expiry of leases,
    are not supported.
    """
    by_key = _by_key(operations)
    checked = sum(map(len, by_key.values()))
    if not checked:
        return Verdict("undecided", _NAME, note="nothing was recorded")
    budget = Budget(clock, clock() + budget_s, max_states)
    undecided: list[str] = []
    limits: set[str] = set()
    # Short histories first: the long ones get the remaining time.
    for left, (key, found) in zip(range(len(by_key), 0, -1), sorted(by_key.items(), key=_length), strict=True):
        value = (initial or {}).get(key)
        share = _share(budget, left)
        answer = _decide(found, value, share)
        if answer == "no":
            return _no(found, value, checked, budget)
        if answer == "undecided":
            undecided.append(key)
            limits.add(f"{max_states} situations" if share.states < 0 else f"{budget_s:g} s")
    if undecided:
        names = ", ".join(undecided[:MOST_KEPT])
        return Verdict("undecided", _NAME, checked, note=f"no decision in {' and '.join(sorted(limits))} on {names}")
    return Verdict("yes", _NAME, checked, note=f"{len(by_key)} keys, {budget.used} situations")


def _by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind not in ARGUMENTS:
            raise SettingsError(f"{operation.kind} is not an operation on a register")
        by_key[operation.key].append(operation)
    return by_key


def _length(item: tuple[str, list[Operation]]) -> int:
    return len(item[1])


class _Share(Budget):
    """A part of a budget. What it spends also counts there."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Budget, deadline: float, states: int) -> None:
        super().__init__(whole.clock, deadline, states)
        self._whole = whole

    def spend(self) -> bool:
        self._whole.used += 1
        self._whole.states -= 1
        return super().spend()


def _share(budget: Budget, parts: int) -> Budget:
    """An equal part of the rest: one hard key must not hide a simple fault in another."""
    now = budget.clock()
    left_s = max(0.0, budget.deadline - now)
    return _Share(budget, now + left_s / parts, max(1, budget.states // parts))


def _decide(operations: list[Operation], initial: Value | None, budget: Budget) -> Answer:
    acts = make_acts(operations)
    if from_nowhere(acts, initial):
        return "no"
    settle(acts, initial)
    merge_unseen(acts)
    bound(acts)
    return Search(acts, start(initial)).run(budget)


def _no(operations: list[Operation], initial: Value | None, checked: int, budget: Budget) -> Verdict:
    offending = _shortest_prefix(operations, initial, budget)
    last = max(offending, key=lambda operation: operation.returned_at or 0.0)
    earlier = len(offending) - 1
    sentence = f"no order of {earlier} operations on {last.key} before it explains {last}"
    return Verdict("no", _NAME, checked, (Violation("linearizable", sentence),), 1, offending=offending)


def _shortest_prefix(operations: list[Operation], initial: Value | None, budget: Budget) -> tuple[Operation, ...]:
    """By bisection: a history that cannot be explained stays so with later operations."""
    ends = sorted(operation.returned_at for operation in operations if operation.returned_at is not None)
    low, high = 0, len(ends) - 1
    while low < high and not budget.out_of_time:
        middle = (low + high) // 2
        if _decide(_until(operations, ends[middle]), initial, _share(budget, 2)) == "no":
            high = middle
        else:
            low = middle + 1
    return tuple(_until(operations, ends[high]))


def _until(operations: list[Operation], end: float) -> list[Operation]:
    """The history at the time `end`: operations that had not returned have an unknown outcome."""
    found = sorted((o for o in operations if o.called_at <= end), key=lambda o: o.called_at)
    return [o if o.returned_at is not None and o.returned_at <= end else _opened(o) for o in found if _says(o, end)]


def _says(operation: Operation, end: float) -> bool:
    return operation.kind != "get" or (operation.returned_at is not None and operation.returned_at <= end)


def _opened(operation: Operation) -> Operation:
    return Operation(
        operation.client, operation.kind, operation.key, operation.args, None, operation.called_at, returned_at=None
    )
