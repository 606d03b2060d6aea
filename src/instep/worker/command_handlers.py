"""The script's part in commands: named actions, and functions that restore a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from instep.command_kinds import COMMAND_KINDS, Argument
from instep.wire.documents import Manifest, Plan

Action: TypeAlias = Callable[[], object]
Restorer: TypeAlias = Callable[[Manifest], object]
Check: TypeAlias = Callable[[Manifest], str | None]

MAX_OFFERED = 64
"""Upper bound for the action names that operators are shown. More can be declared and requested."""


class CommandHandlers:
    """The script's actions by name, and its functions that load a checkpoint."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}
        self._restorers: list[Restorer] = []
        self._checks: list[Check] = []
        self.went_back: Manifest | None = None
        """The checkpoint that the run was last taken back to."""

    def __repr__(self) -> str:
        return f"CommandHandlers({', '.join(self._actions) or 'no action'}, {len(self._restorers)} to restore)"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._actions)

    @property
    def offer(self) -> tuple[tuple[str, ...], bool]:
        """What operators are shown: the first action names in order, and whether a checkpoint can be loaded."""
        return tuple(sorted(self._actions)[:MAX_OFFERED]), bool(self._restorers)

    def declare(self, name: str, function: Action) -> None:
        self._actions[name] = function

    def on_restore(self, function: Restorer, check: Check | None = None) -> None:
        self._restorers.append(function)
        if check is not None:
            self._checks.append(check)

    def why_not(self, plan: Plan) -> dict[str, str]:
        """Why this worker cannot carry out the plan, by name; empty if it can."""
        name, argument = plan.name or "", _argument(plan)
        if plan.kind != "config" and plan.kind not in COMMAND_KINDS:
            return {plan.kind: "this worker's version of Instep does not know the command"}
        if argument == "action" and name not in self._actions:
            return {name: self._unknown(name)}
        if argument == "checkpoint" and not self._restorers:
            return {name: "the script has no Checkpointer and no run.on_restore function"}
        if argument == "checkpoint" and plan.checkpoint is not None:
            problems = (check(plan.checkpoint) for check in self._checks)
            return next(({name: problem} for problem in problems if problem is not None), {})
        return {}

    def act(self, plan: Plan) -> int | None:
        """Carries out the command, in the training thread. Returns the step to resume with, if that is another one.

        Raises whatever the script's function raises: then the rank has failed.
        """
        if _argument(plan) == "action":
            self._actions[plan.name or ""]()
        if _argument(plan) != "checkpoint" or plan.checkpoint is None:
            return None
        for function in self._restorers:
            function(plan.checkpoint)
        self.went_back = plan.checkpoint
        return plan.checkpoint.step + 1

    def _unknown(self, name: str) -> str:
        import difflib  # imported when needed: the trainer pays for each import

        declared = ", ".join(sorted(self._actions)) or "none"
        close = difflib.get_close_matches(name, self._actions, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"the script declares no such action (run.action); it declares {declared}{hint}"


def _argument(plan: Plan) -> Argument | None:
    kind = COMMAND_KINDS.get(plan.kind)
    return kind.argument if kind is not None else None
