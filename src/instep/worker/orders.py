"""What an operator can have all ranks do at one step, as far as the training script has a part in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from instep.worker.course import Course
from instep.worker.saved import Manifest

Action: TypeAlias = Callable[[], object]
Restorer: TypeAlias = Callable[[Manifest], object]
Check: TypeAlias = Callable[[Manifest], str | None]

MAX_OFFERED = 64
"""Names of actions that operators are shown; more can be declared, and be asked for."""


@dataclass(frozen=True, slots=True)
class Order:
    """A plan as the worker hears it: its kind, what it names, and the course that holds from its gate on."""

    number: int
    gate: int = 0
    kind: str = "config"
    name: str = ""
    course: Course | None = None
    checkpoint: Mapping[str, Any] | None = None
    """The manifest to go back to."""

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Order:
        course = message.get("course")
        return cls(
            message["n"],
            message["gate"],
            message.get("kind", "config"),
            message.get("name") or "",
            None if course is None else Course.of(course),
            message.get("checkpoint"),
        )


class Orders:
    """The script's actions by name, and its functions that load a checkpoint."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}
        self._restorers: list[Restorer] = []
        self._checks: list[Check] = []
        self.went_back: Manifest | None = None
        """What the run was taken back to last."""

    def __repr__(self) -> str:
        return f"Orders({', '.join(self._actions) or 'no action'}, {len(self._restorers)} to restore)"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._actions)

    @property
    def offer(self) -> tuple[tuple[str, ...], bool]:
        """What operators are shown of it: the first names in their order, and whether a checkpoint can be loaded."""
        return tuple(sorted(self._actions)[:MAX_OFFERED]), bool(self._restorers)

    def declare(self, name: str, function: Action) -> None:
        self._actions[name] = function

    def on_restore(self, function: Restorer, check: Check | None = None) -> None:
        self._restorers.append(function)
        if check is not None:
            self._checks.append(check)

    def why_not(self, order: Order) -> dict[str, str]:
        """Why this worker cannot do it, by what it names; empty when it can."""
        if order.kind == "action" and order.name not in self._actions:
            return {order.name: self._unknown(order.name)}
        if order.kind == "restore" and not self._restorers:
            return {order.name: "the script has no Checkpointer and no run.on_restore function"}
        if order.kind == "restore" and order.checkpoint is not None:
            manifest = Manifest.of(order.checkpoint)
            problems = [problem for check in self._checks if (problem := check(manifest)) is not None]
            return {order.name: problems[0]} if problems else {}
        if order.kind not in ("config", "pause", "resume", "stop", "checkpoint", "action", "restore"):
            return {order.kind: "this worker's version of Instep does not know the command"}
        return {}

    def act(self, order: Order) -> int | None:
        """Does it, in the training thread; the step to go on with if that is another one.

        Raises whatever the script's function raises: the rank has then failed.
        """
        if order.kind == "action":
            self._actions[order.name]()
        if order.kind != "restore" or order.checkpoint is None:
            return None
        manifest = Manifest.of(order.checkpoint)
        for function in self._restorers:
            function(manifest)
        self.went_back = manifest
        return manifest.step + 1

    def _unknown(self, name: str) -> str:
        import difflib  # not before it is needed: the trainer pays for each import

        declared = ", ".join(sorted(self._actions)) or "none"
        close = difflib.get_close_matches(name, self._actions, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"the script declares no such action (run.action); it declares {declared}{hint}"
