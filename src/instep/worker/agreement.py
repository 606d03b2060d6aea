"""The values that hold for a worker, and its part in agreeing on the next ones. No socket, no clock.

What the agent says comes in, what is to be answered goes out: `Gate` decides, this prepares and applies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

from instep.scalar import Scalar
from instep.wire import Message
from instep.worker.gate import Answer, Apply, Gate
from instep.worker.hyper import Codec

Config = TypeVar("Config", default=Any)


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker starts its first view with: `previous` before step `gate`, `values` from it on."""

    values: Mapping[str, Scalar]
    plan: int
    gate: int | None
    previous: Mapping[str, Scalar] | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Start:
        return cls(document["values"], document["plan"], document.get("gate"), document.get("previous"))


class Agreement(Generic[Config]):
    """Promise: from `start` on `config` changes in `begin` and `apply` only, that is at a boundary.

    `gate` says what is due before a step; `applied` is what every agent must hear of the last change. Methods that
    return messages leave it to the caller to say them: the next agent asks again for those that are lost.
    """

    def __init__(self, codec: Codec) -> None:
        self.gate = Gate()
        self.config: Config
        self.applied: Message | None = None
        self._codec = codec
        self._values: dict[str, Scalar] = {}
        self._start: Start | None = None
        self._prepared: tuple[int, Config] | None = None
        self._postponed: Message | None = None
        self._callbacks: list[Callable[[Config, Config], object]] = []

    def __repr__(self) -> str:
        return f"Agreement({self.gate!r}, {self._values})"

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema of what this worker accepts."""
        return self._codec.document

    def on_change(self, function: Callable[[Config, Config], object]) -> None:
        """From now on `function(old, new)` is called at each change."""
        self._callbacks.append(function)

    def refusals(self, question: Message) -> Message:
        """What this worker would refuse to start with."""
        refused = self._codec.refusals(question["values"], question["base"], question["groups"])
        return {"t": "tried", "n": question["n"], "refused": refused}

    # -- how it begins ----------------------------------------------------------------------------------------------

    def start(self, document: Mapping[str, Any]) -> None:
        """The first view gives these values."""
        self._start = start = Start.of(document)
        self.gate.start(start.plan)
        self._values = dict(start.values)
        self.config = self._codec.decode(self._values)

    def begin(self, step: int) -> list[Message]:
        """The first boundary: only now is it known on which side of the last agreed gate this worker begins.

        At every later one there is nothing to it.
        """
        if self._start is None:
            return []
        start, self._start = self._start, None
        said: list[Message] = []
        if start.gate is not None and start.previous is not None:
            if step < start.gate:
                self._use(start.previous, None)
                self.gate.inherit(start.plan, start.gate, start.values)
            else:
                said.append(self._has_applied(start.plan, step))
        return said + self.hear_postponed(step)

    # -- what the agent says ----------------------------------------------------------------------------------------

    def hear_plan(self, message: Message, step: int) -> list[Message]:
        """`step` is the one about to be run."""
        if self._start is not None:
            self._postponed = message  # not before it is known on which side of the last gate this worker begins
            return []
        number, values = message["n"], message["values"]
        answer = self.gate.hear_plan(number, message["gate"], values, step)
        if answer is Answer.LATER:
            self._postponed = message
        elif answer is Answer.LATE:
            return [{"t": "late", "n": number, "step": step}]
        elif answer is Answer.ARMED:
            problems = self._codec.problems(self._values, values)
            if problems:
                return [{"t": "refused", "n": number, "problems": problems}]
            self._prepared = (number, self._codec.decode({**self._values, **values}))
            return [{"t": "armed", "n": number}]
        return []

    def hear_decision(self, number: int, commit: bool, step: int) -> list[Message]:
        self.gate.hear_decision(number, commit)
        if self._postponed is not None and self._postponed["n"] == number:
            self._postponed = None  # decided without this worker, so aborted: nothing to promise
        return self.hear_postponed(step)

    def hear_postponed(self, step: int) -> list[Message]:
        """The promise that stood may be settled now: looks again at the plan that had to wait for it."""
        if self._postponed is None:
            return []
        message, self._postponed = self._postponed, None
        return self.hear_plan(message, step)

    # -- what is due ------------------------------------------------------------------------------------------------

    def apply(self, due: Apply, step: int) -> Message:
        """Raises whatever an `on_change` function raises; then nobody is told that it was applied."""
        prepared, self._prepared = self._prepared, None
        known = prepared[1] if prepared and prepared[0] == due.number else None
        self._use({**self._values, **due.values}, known)
        return self._has_applied(due.number, step)

    def _has_applied(self, number: int, step: int) -> Message:
        self.applied = {"t": "applied", "n": number, "step": step}
        return self.applied

    def _use(self, values: Mapping[str, Scalar], prepared: Config | None) -> None:
        """From here on these values hold: decoded, told to whoever asked to be told."""
        self._values = dict(values)
        old, self.config = self.config, prepared if prepared is not None else self._codec.decode(self._values)
        for function in self._callbacks:
            function(old, self.config)
