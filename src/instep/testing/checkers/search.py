"""Searches for an order of one key's operations that explains all answers.

After J. Wing and C. Gong, "Testing and Verifying Concurrent Objects" (1993), which tries the orders that real time
allows, and G. Lowe, "Testing for Linearizability" (2017), which remembers visited situations. Added here: etcd's
revisions exclude orders that contradict them; open operations are used only where one is needed; equivalent open
operations are used oldest first; and a situation is skipped if a similar one, with no more open operations used, has
failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from instep.testing.checkers.register import UNBOUNDED, Act, State, step
from instep.testing.checkers.verdict import Answer


@dataclass(slots=True)
class Budget:
    """The limit of a search: until `deadline` of `clock`, and at most `states` more situations."""

    clock: Callable[[], float]
    deadline: float
    states: int
    used: int = 0

    @property
    def out_of_time(self) -> bool:
        return self.clock() >= self.deadline

    def spend(self) -> bool:
        """Counts one situation. False if the budget is used up."""
        self.used += 1
        self.states -= 1
        return self.states >= 0


@dataclass(slots=True)
class _Node:
    """A situation: all closed acts before `base`, those in `mask` (bits from `base` on), and the open ones in `taken`
    have happened. `leaning`: the last act was an open one, so the next one must need it."""

    base: int
    mask: int
    taken: int
    state: State
    floor: int
    leaning: bool


class Search:
    """Decides whether some order explains all of one key's acts. For one use."""

    def __init__(self, acts: list[Act], initial: State) -> None:
        by_call = sorted(acts, key=lambda act: act.called_at)
        self._closed = [act for act in by_call if not act.open]
        self._open = [act for act in by_call if act.open]
        self._initial = initial
        # Without revisions, places would only make equivalent situations differ.
        self._counts = any(a.low or a.high < UNBOUNDED or a.kind == "cas_revision" for a in acts)
        self._tried: dict[tuple[int, int, State, bool], list[tuple[int, int]]] = {}
        self._high_from = _suffix_minimum([act.high for act in self._closed])
        self._older_twins = _older_twins(self._open)

    def run(self, budget: Budget) -> Answer:
        """Depth-first search without recursion, because a history may be long."""
        if not self._closed:
            return "yes"
        stack = [self._moves(_Node(0, 0, 0, self._initial, 0, False))]
        while stack:
            for node in stack[-1]:
                # Checked at each node, which may take milliseconds with thousands of concurrent operations.
                if budget.out_of_time:
                    return "undecided"
                if node.base == len(self._closed):
                    return "yes"
                if self._is_new(node):
                    if not budget.spend():
                        return "undecided"
                    stack.append(self._moves(node))
                    break
            else:
                stack.pop()
        return "no"

    def _is_new(self, node: _Node) -> bool:
        """Whether no equal or better situation was tried: with no more open acts taken, and no higher floor."""
        tried = self._tried.setdefault((node.base, node.mask, node.state, node.leaning), [])
        if any(not taken & ~node.taken and floor <= node.floor for taken, floor in tried):
            return False
        tried[:] = [(taken, floor) for taken, floor in tried if node.taken & ~taken or node.floor > floor]
        tried.append((node.taken, node.floor))
        return True

    def _moves(self, node: _Node) -> Iterator[_Node]:
        window, earliest_return, beyond = self._window(node)
        lowest_high = min((self._closed[index].high for index in window), default=UNBOUNDED)
        lowest_high = min(lowest_high, self._high_from[beyond])
        closed = self._closed
        for index in sorted(window, key=lambda index: (closed[index].high, closed[index].returned_at)):
            act = closed[index]
            if act.low <= lowest_high and not (node.leaning and act.kind == "put"):
                after = step(act, node.state, node.floor)
                if after is not None:
                    yield self._after(node, index, after[0], after[1] * self._counts)
        yield from self._open_moves(node, earliest_return)

    def _window(self, node: _Node) -> tuple[list[int], float, int]:
        """The closed acts that may be next, the earliest return among them, and the index of the later ones."""
        found: list[int] = []
        earliest_return = float("inf")
        index = node.base
        while index < len(self._closed) and self._closed[index].called_at <= earliest_return:
            if not node.mask >> (index - node.base) & 1:
                found.append(index)
                earliest_return = min(earliest_return, self._closed[index].returned_at)
            index += 1
        return found, earliest_return, index

    def _open_moves(self, node: _Node, earliest_return: float) -> Iterator[_Node]:
        for index, act in enumerate(self._open):
            if act.called_at > earliest_return:
                return
            if node.taken >> index & 1 or self._older_twins[index] & ~node.taken:
                continue
            # A write that is overwritten unseen, or changes nothing, need not have happened.
            if node.leaning and act.kind in ("put", "delete"):
                continue
            after = step(act, node.state, node.floor)
            if after is not None:
                yield _Node(node.base, node.mask, node.taken | 1 << index, after[0], after[1] * self._counts, True)

    def _after(self, node: _Node, index: int, state: State, floor: int) -> _Node:
        base, mask = node.base, node.mask | 1 << (index - node.base)
        while mask & 1:
            base, mask = base + 1, mask >> 1
        return _Node(base, mask, node.taken, state, floor, False)


def _suffix_minimum(numbers: list[int]) -> list[int]:
    """For each index, the minimum from there on; one more entry for the end."""
    least = [UNBOUNDED] * (len(numbers) + 1)
    for index in range(len(numbers) - 1, -1, -1):
        least[index] = min(numbers[index], least[index + 1])
    return least


def _older_twins(acts: list[Act]) -> list[int]:
    """For each open act, a mask with the last equivalent one before it."""
    last: dict[object, int] = {}
    twins: list[int] = []
    for index, act in enumerate(acts):
        twins.append(1 << last[act.signature] if act.signature in last else 0)
        last[act.signature] = index
    return twins
