"""The combined verdicts of several checkers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from instep.testing.checkers.verdict import Answer, Verdict


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
