"""The verdict of a checker: yes, no, or undecided; and the verdicts of several combined."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from instep.testing.checkers.operation import Operation

Answer: TypeAlias = Literal["yes", "no", "undecided"]

MOST_KEPT = 50
"""Violations kept per verdict; more are only counted."""
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule, with a sentence that names the cause."""

    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`yes`: the recorded history keeps the promise. `no`: it does not, and `violations` say where. `undecided`: the
    checker ran out of time, or nothing was recorded.

    `checked` is the number of checked records. `violations` has the first 50 of `found`. `offending` is the part of a
    history that cannot be explained; its last operation is the one that contradicts the others.
    """

    answer: Answer
    checker: str = ""
    checked: int = 0
    violations: tuple[Violation, ...] = ()
    found: int = 0
    note: str = ""
    offending: tuple[Operation, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the answer is yes. An undecided check has not passed."""
        return self.answer == "yes"

    def __str__(self) -> str:
        head = (
            f"{self.checker or 'check'}: {self.answer} ({self.checked} records{', ' + self.note if self.note else ''})"
        )
        lines = [f"  {violation}" for violation in self.violations[:_SHOWN]]
        if self.found > _SHOWN:
            lines.append(f"  and {self.found - _SHOWN} more")
        if self.offending:
            lines.append(f"  the last of the {len(self.offending)} operations that cannot be explained together:")
            lines.extend(f"    {operation}" for operation in self.offending[-_SHOWN:])
        return "\n".join([head, *lines])

    def as_json(self) -> dict[str, object]:
        """The verdict as an object for `json.dumps`; `offending` as text."""
        facts = asdict(self)
        facts["violations"] = [asdict(violation) for violation in self.violations]
        facts["offending"] = [str(operation) for operation in self.offending]
        return facts


@dataclass(frozen=True, slots=True)
class Report:
    """Several verdicts, printable with `str`. It passes if there are verdicts and all of them are yes."""

    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Report:
        """A report of these verdicts."""
        return cls(tuple(verdicts))

    @property
    def answer(self) -> Answer:
        """`no` if one verdict is no; else `undecided` if one is undecided or there is none; else `yes`."""
        answers = {verdict.answer for verdict in self.verdicts}
        if "no" in answers:
            return "no"
        return "yes" if answers == {"yes"} else "undecided"

    @property
    def passed(self) -> bool:
        """Whether all verdicts are yes, and there is at least one."""
        return self.answer == "yes"

    def __str__(self) -> str:
        return "\n".join([*map(str, self.verdicts), f"verdict: {self.answer}"])

    def as_json(self) -> dict[str, object]:
        """The report as an object for `json.dumps`."""
        return {"answer": self.answer, "verdicts": [verdict.as_json() for verdict in self.verdicts]}

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.as_json(), indent=2)


class Findings:
    """Collects the violations of one checker: counts all, keeps the first, and creates the verdict."""

    def __init__(self, checker: str) -> None:
        self.checker = checker
        self.checked = 0
        self.found = 0
        self._kept: list[Violation] = []

    def __repr__(self) -> str:
        return f"Findings({self.checker}: {self.found} in {self.checked})"

    def add(self, rule: str, sentence: str) -> None:
        self.extend([Violation(rule, sentence)])

    def extend(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            self.found += 1
            if len(self._kept) < MOST_KEPT:
                self._kept.append(violation)

    def verdict(self, note: str = "") -> Verdict:
        """The verdict: yes without violations, undecided if nothing was checked."""
        if self.found:
            return Verdict("no", self.checker, self.checked, tuple(self._kept), self.found, note)
        if not self.checked:
            return Verdict("undecided", self.checker, note=note or "nothing was recorded")
        return Verdict("yes", self.checker, self.checked, note=note)
