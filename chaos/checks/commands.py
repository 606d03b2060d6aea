"""The outcome of each command, from the history of a run's keys. Pure: takes batches of whole revisions.

The transaction that commits a command's plan, declines it, or forms a fresh view deletes its key, and no other one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from instep.etcd import Event, KeyValue
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed, Command, Decision, Plan, View

_DECISION = re.compile(r"state/plans/([0-9]+)/decision$")
_PLAN = re.compile(r"state/plans/([0-9]+)$")
MAX_PROBLEMS = 50


@dataclass(slots=True)
class Pause:
    """The run waited before step `gate`: until command `ended_by`, or to the end of its generation."""

    gate: int
    ended_by: str | None = None


@dataclass(frozen=True, slots=True)
class AgreedAction:
    """An action that was agreed on in `view`, to be run before step `gate`."""

    plan: int
    view: int
    gate: int
    name: str


@dataclass(frozen=True, slots=True)
class Generation:
    """From a fresh view to the next one: what its ranks had to do, and at which steps."""

    view: int
    saves: set[int] = field(default_factory=set)
    pauses: list[Pause] = field(default_factory=list)
    actions: list[AgreedAction] = field(default_factory=list)


@dataclass(slots=True)
class _Revision:
    """What one transaction wrote, as far as commands are concerned."""

    number: int
    view: View | None = None
    agreed: Agreed | None = None
    committed: Plan | None = None
    declined: set[str] = field(default_factory=set)
    written: dict[str, KeyValue] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)


class CommandHistory:
    """Takes all events in order; `problems` has the first fifty broken rules.

    `outcomes` counts them: `<kind> committed`, `<kind> declined`, `<kind> dropped`.
    """

    def __init__(self, keys: Keys, known_actions: Iterable[str]) -> None:
        self.problems: list[str] = []
        self.generations: list[Generation] = []
        self.outcomes: Counter[str] = Counter()
        self.pending: dict[str, int] = {}
        """The revision of each command that has no outcome yet, by its id."""
        self._keys = keys
        self._known = frozenset(known_actions)
        self._commands: dict[str, Command] = {}
        self._plans: dict[int, Plan] = {}

    def __repr__(self) -> str:
        return f"CommandHistory({dict(self.outcomes)}, {len(self.pending)} pending, {len(self.problems)} problems)"

    def generation_of(self, view: int) -> Generation | None:
        """The generation that a view belongs to."""
        place = bisect_right([generation.view for generation in self.generations], view)
        return self.generations[place - 1] if place else None

    def revision(self, number: int, events: Sequence[Event]) -> None:
        """All events of one transaction."""
        found = _Revision(number)
        for event in events:
            path = event.kv.key.removeprefix(self._keys.root)
            if path != event.kv.key:
                self._read(path, event, found)
        self._follow(found)
        for command_id, kv in found.written.items():
            self.pending[command_id] = number
            command = Command.decode_or_none(kv.value)
            if command is not None:
                self._commands[command_id] = command
        for command_id in found.deleted:
            self._decided(command_id, found)
        if found.committed is not None and found.committed.change_id not in found.deleted:
            plan = found.committed
            self._problem(f"plan {plan.number}, a {plan.kind}, was committed and its command was not deleted with it")

    def at_the_end(self) -> list[str]:
        """A sentence for each command that was neither committed nor declined nor dropped."""
        return [
            f"command {name}, written at revision {revision}, is still there" for name, revision in self.pending.items()
        ]

    def _read(self, path: str, event: Event, found: _Revision) -> None:
        kv = event.kv
        if path.startswith("commands/"):
            command_id = path.removeprefix("commands/")
            if event.kind == "put":
                found.written[command_id] = kv
            else:
                found.deleted.add(command_id)
        elif event.kind != "put":
            return
        elif path == "state/view":
            found.view = View.decode(kv.value)
        elif path == "state/agreed":
            found.agreed = Agreed.decode(kv.value)
        elif path.startswith("state/declined/"):
            found.declined.add(path.removeprefix("state/declined/"))
        elif (matched := _PLAN.match(path)) is not None:
            plan = Plan.decode(kv.value)
            if plan.kind != "config":
                self._plans[plan.number] = plan
        elif (matched := _DECISION.match(path)) is not None:
            plan_or_none = self._plans.pop(int(matched[1]), None)
            if Decision.decode(kv.value).commit:
                found.committed = plan_or_none

    def _follow(self, found: _Revision) -> None:
        """What applies to the ranks from this revision on."""
        if found.view is not None and found.view.fresh:
            self._start_generation(found.view, found.agreed)
        if found.committed is not None:
            self._committed(found.committed, found.agreed)
        if not self.generations or found.agreed is None:
            return
        generation, directive = self.generations[-1], found.agreed.directive
        if directive.save_at is not None:
            generation.saves.add(directive.save_at)
        paused = _open(generation)
        if paused is None and directive.paused_at is not None:
            generation.pauses.append(Pause(directive.paused_at))
        elif paused is not None and directive.paused_at is None:
            plan = found.committed
            paused.ended_by = plan.change_id if plan is not None and plan.kind == "resume" else ""
            if not paused.ended_by:
                self._problem(f"the pause at step {paused.gate} ended at revision {found.number} without a resume")

    def _start_generation(self, view: View, agreed: Agreed | None) -> None:
        paused = _open(self.generations[-1]) if self.generations else None
        if paused is not None and (agreed is None or agreed.directive.paused_at is None):
            self._problem(f"the pause at step {paused.gate} did not outlive the start of view {view.number}")
        self.generations.append(Generation(view.number))

    def _committed(self, plan: Plan, agreed: Agreed | None) -> None:
        directive = agreed.directive if agreed is not None else None
        wanted = self._commands.get(plan.change_id or "")
        if wanted is None or (wanted.kind, wanted.name) != (plan.kind, plan.name):
            self._problem(f"plan {plan.number} is a {plan.kind} {plan.name or ''}, and what was asked for is {wanted}")
        if directive is None:
            self._problem(f"plan {plan.number}, a {plan.kind}, was committed without what is agreed")
        elif plan.kind == "pause" and directive.paused_at != plan.gate:
            self._problem(f"plan {plan.number} pauses before step {plan.gate}, and agreed is {directive.paused_at}")
        elif plan.kind == "checkpoint" and directive.save_at != plan.gate:
            self._problem(f"plan {plan.number} saves step {plan.gate}, and agreed is {directive.save_at}")
        if plan.kind == "action":
            if plan.name not in self._known:
                self._problem(f"plan {plan.number}, the unknown action {plan.name}, was committed")
            if self.generations:
                self.generations[-1].actions.append(AgreedAction(plan.number, plan.view, plan.gate, plan.name or ""))

    def _decided(self, command_id: str, found: _Revision) -> None:
        command = self._commands.pop(command_id, None)
        kind = command.kind if command is not None else "unreadable"
        self.pending.pop(command_id, None)
        if found.committed is not None and found.committed.change_id == command_id:
            self.outcomes[f"{kind} committed"] += 1
        elif command_id in found.declined:
            self.outcomes[f"{kind} declined"] += 1
        elif found.view is not None and found.view.fresh:
            self.outcomes[f"{kind} dropped"] += 1
        else:
            self._problem(f"command {command_id}, a {kind}, was lost: it was deleted at revision {found.number}")

    def _problem(self, sentence: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(sentence)


def _open(generation: Generation) -> Pause | None:
    """The pause that has not ended."""
    last = generation.pauses[-1] if generation.pauses else None
    return last if last is not None and last.ended_by is None else None
