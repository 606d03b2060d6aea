"""Desired changes: none is lost, invented or split."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from instep.scalar import Scalar, same
from instep.testing.checkers.agreement import Commit
from instep.testing.checkers.jsonl import record
from instep.testing.checkers.verdict import Findings, Verdict, Violation


@record
@dataclass(frozen=True, slots=True)
class Desired:
    """A put of `value` to `config/<name>` at etcd's `revision`. `valid` is False if it was rejected."""

    name: str
    revision: int
    value: Scalar
    valid: bool = True


def check_changes(
    desired: Iterable[Desired],
    commits: Iterable[Commit],
    final: Mapping[int, Mapping[str, Scalar]],
    *,
    initial: Mapping[str, Scalar] | None = None,
) -> Verdict:
    """Checks four rules: each valid desired value was agreed on, or superseded by a newer one of its name, in order;
    nothing else was agreed on; keys written in one revision took effect together; and at the end each rank holds the
    last valid value of every name.

    `desired`: every put that took effect, from a watch of the keys (the answers to clients are not enough, because a
    put without an answer counts too). `final`: the values of each rank when all changes have settled. `initial`: the
    values before any put; by default, those of the first commit. Limit: deleted keys are not supported. Equal values
    cannot be distinguished, so a value that was desired twice counts as whichever fits. A change that was partly
    overwritten before it was planned need not take effect together.
    """
    wanted = _by_name(desired)
    plans = sorted(commits, key=lambda commit: (commit.life, commit.plan))
    holds = [_NameHistory(name, wanted[name], plans, initial or {}) for name in sorted(wanted)]
    findings = Findings("changes")
    for history in holds:
        findings.extend(history.violations)
    findings.extend(_unasked(wanted, plans, initial or {}))
    findings.extend(_torn(holds))
    findings.extend(_at_the_end(wanted, final))
    if final:
        findings.checked = sum(map(len, wanted.values()))
    return findings.verdict("" if final else "no final values were recorded")


class _NameHistory:
    """One name across the commits: which of its desired values each commit has."""

    def __init__(self, name: str, desired: list[Desired], plans: list[Commit], initial: Mapping[str, Scalar]) -> None:
        self.name = name
        self.violations: list[Violation] = []
        self.took_hold: dict[int, int] = {}
        """By revision of a desired value: the index of the first commit that has it."""
        self._valid = [item for item in desired if item.valid]
        self._initial = initial
        at = -1
        carried = [
            (index, plan, dict(plan.values)[name]) for index, plan in enumerate(plans) if name in dict(plan.values)
        ]
        for index, plan, value in carried:
            at = self._advance(index, plan, value, at)
        if self._valid and not (carried and same(carried[-1][2], self._valid[-1].value)):
            self.violations.append(Violation("not lost", f"{_say(self._valid[-1])} was not agreed on in the end"))

    def _advance(self, index: int, plan: Commit, value: Scalar, at: int) -> int:
        """The index of this commit's value among the desired ones, at or after the index of the commit before."""
        if same(self._valid[at].value, value) if at >= 0 else self._is_initial(value):
            return at
        # The latest that fits: a value that was overwritten before it was planned is not the planned one.
        for place in range(self._known_at(plan.revision) - 1, at, -1):
            if same(self._valid[place].value, value):
                self.took_hold[self._valid[place].revision] = index
                return place
        if at >= 0 and (self._is_initial(value) or any(same(item.value, value) for item in self._valid[:at])):
            sentence = f"plan {plan.plan} went back to {self.name} = {value!r} after {_say(self._valid[at])}"
            self.violations.append(Violation("in order", sentence))
        return at

    def _known_at(self, revision: int) -> int:
        return bisect_right(self._valid, revision, key=lambda item: item.revision)

    def _is_initial(self, value: Scalar) -> bool:
        return self.name in self._initial and same(self._initial[self.name], value)


def _by_name(desired: Iterable[Desired]) -> dict[str, list[Desired]]:
    found: dict[str, list[Desired]] = {}
    for item in sorted(desired, key=lambda item: item.revision):
        found.setdefault(item.name, []).append(item)
    return found


def _unasked(
    wanted: Mapping[str, list[Desired]], plans: list[Commit], initial: Mapping[str, Scalar]
) -> Iterator[Violation]:
    """Committed values that were not desired by then, or had been rejected."""
    known = {name: {_identity(value)} for name, value in initial.items()}
    queues = {name: deque(item for item in items if item.valid) for name, items in wanted.items()}
    for plan in plans:
        for name, value in plan.values:
            # Without a given initial value, a name starts with that of the first commit.
            values = known.setdefault(name, {_identity(value)})
            queue = queues.get(name, deque())
            while queue and queue[0].revision <= plan.revision:
                values.add(_identity(queue.popleft().value))
            if _identity(value) not in values:
                yield Violation("asked for", f"plan {plan.plan} set {name} to {value!r}, which was not desired")


def _torn(histories: list[_NameHistory]) -> Iterator[Violation]:
    together: dict[int, list[tuple[str, int]]] = {}
    for history in histories:
        for revision, index in history.took_hold.items():
            together.setdefault(revision, []).append((history.name, index))
    for revision, found in sorted(together.items()):
        if len({index for _, index in found}) > 1:
            names = ", ".join(name for name, _ in found)
            yield Violation("together", f"{names}, written in one revision ({revision}), took hold in different plans")


def _at_the_end(wanted: Mapping[str, list[Desired]], final: Mapping[int, Mapping[str, Scalar]]) -> Iterator[Violation]:
    for name, items in sorted(wanted.items()):
        last = next((item for item in reversed(items) if item.valid), None)
        if last is None:
            continue
        for rank, values in sorted(final.items()):
            if name not in values or not same(values[name], last.value):
                yield Violation("last holds", f"rank {rank} ended with {name} = {values.get(name)!r}, not {_say(last)}")


def _identity(value: Scalar) -> tuple[bool, Scalar]:
    """Equal for values that `instep.scalar.same` treats as equal."""
    return isinstance(value, bool), value


def _say(item: Desired) -> str:
    return f"{item.name} = {item.value!r} of revision {item.revision}"
