"""Checks the run's own rules in the history of its keys. Pure: takes batches of whole revisions, returns sentences.

Each write of a leader must have the token of the leader of that moment: in the revision before, its candidate key
existed with that token as its create revision.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from instep.etcd import Event, KeyValue
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed, Decision, Leader, Plan, View
from instep.scalar import Scalar

_PLAN = re.compile(r"plans/([0-9]+)$")
_DECISION = re.compile(r"plans/([0-9]+)/decision$")
MAX_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class Span:
    """From a fresh view to the next one: which values apply from which step on, with ascending gates."""

    view: int
    gates: list[int] = field(default_factory=list)
    values: list[Mapping[str, Scalar]] = field(default_factory=list)

    def at(self, step: int) -> Mapping[str, Scalar]:
        return self.values[max(0, bisect_right(self.gates, step) - 1)]

    def until(self, step: int) -> int:
        """The last step that has the values of `step`."""
        place = bisect_right(self.gates, step)
        return self.gates[place] - 1 if place < len(self.gates) else 2**62

    def add(self, gate: int, values: Mapping[str, Scalar]) -> None:
        self.gates.append(gate)
        self.values.append(values)


class RunHistory:
    """Takes all events in order; `problems` then has the first fifty broken rules."""

    def __init__(self, keys: Keys) -> None:
        self.problems: list[str] = []
        self.commits = 0
        """Of changes; `chaos.checks.commands` follows commands."""
        self.aborts = 0
        self.terms = 0
        self.views = 0
        self.rejections = 0
        self.spans: list[Span] = []
        self.desired: dict[str, str] = {}
        """The last text put for each name, whether it is valid or not."""
        self.agreed: Agreed | None = None
        self._keys = keys
        self._candidates: dict[str, int] = {}
        self._leader: Leader | None = None
        self._plans = 0
        self._undecided: int | None = None
        self._newest: Plan | None = None
        self._fresh = False

    def __repr__(self) -> str:
        return f"RunHistory({self.commits} commits, {self.aborts} aborts, {len(self.problems)} problems)"

    def feed(self, events: Iterable[Event]) -> None:
        """One batch of whole revisions, or several."""
        revision: list[Event] = []
        for event in events:
            if revision and event.kv.mod_revision != revision[0].kv.mod_revision:
                self._revision(revision)
                revision = []
            revision.append(event)
        if revision:
            self._revision(revision)

    def span_of(self, view: int) -> Span | None:
        """The span that a view belongs to."""
        place = bisect_right([span.view for span in self.spans], view)
        return self.spans[place - 1] if place else None

    def _revision(self, events: Sequence[Event]) -> None:
        """A txn's comparisons refer to the state before it, so the candidates change last."""
        candidates = dict(self._candidates)
        for event in events:
            path = event.kv.key.removeprefix(self._keys.root)
            if path == event.kv.key:
                continue
            if path.startswith("election/.gone/"):
                continue  # the record of a withdrawn candidate
            if path.startswith("election/"):
                self._change_candidates(event, candidates)
            elif event.kind == "put" and path.startswith("config/"):
                self.desired[path.removeprefix("config/")] = event.kv.text
            elif event.kind == "put" and path.startswith("state/"):
                self._written(path.removeprefix("state/"), event.kv)
        self._candidates = candidates

    @staticmethod
    def _change_candidates(event: Event, candidates: dict[str, int]) -> None:
        if event.kind == "put":
            candidates[event.kv.key] = event.kv.create_revision
        else:
            candidates.pop(event.kv.key, None)

    def _written(self, path: str, kv: KeyValue) -> None:
        if path == "leader":
            self._proclaimed(kv)
        elif path == "view":
            self._check_leads(kv)
            self._viewed(View.decode(kv.value))
        elif path == "agreed":
            self._check_leads(kv)
            self._agreed(Agreed.decode(kv.value), kv)
        elif found := _PLAN.match(path):
            self._check_leads(kv)
            self._planned(int(found[1]), Plan.decode(kv.value), kv)
        elif found := _DECISION.match(path):
            self._decided(int(found[1]), Decision.decode(kv.value), kv)
        else:
            self.rejections += path.startswith("rejected/")
            self._check_leads(kv)

    def _check_leads(self, kv: KeyValue) -> None:
        leader = self._leader
        if leader is None or self._candidates.get(leader.candidate) != leader.token:
            self._problem(f"{kv.key} was written at revision {kv.mod_revision} without a leader: {leader!r}")

    def _proclaimed(self, kv: KeyValue) -> None:
        leader, before = Leader.decode(kv.value), self._leader
        self.terms += before is None or before.token != leader.token
        if before is not None and leader.token < before.token:
            self._problem(f"the token {leader.token} follows {before.token} at revision {kv.mod_revision}")
        if self._candidates.get(leader.candidate) != leader.token:
            self._problem(f"the token {leader.token} at revision {kv.mod_revision} is of a candidate that was gone")
        elif leader.token != min(self._candidates.values()):
            self._problem(f"the token {leader.token} at revision {kv.mod_revision} is not of the oldest candidate")
        self._leader = leader

    def _viewed(self, view: View) -> None:
        self.views += 1
        self._fresh = view.fresh
        if view.fresh:
            self.spans.append(Span(view.number, [-1], [view.start.values]))

    def _planned(self, number: int, plan: Plan, kv: KeyValue) -> None:
        if kv.version != 1:
            self._problem(f"plan {number} was changed at revision {kv.mod_revision}")
        if number != self._plans + 1:
            self._problem(f"plan {number} follows plan {self._plans} at revision {kv.mod_revision}")
        if self._undecided is not None:
            self._problem(f"plan {number} was opened while plan {self._undecided} was not decided")
        self._plans, self._undecided, self._newest = number, number, plan

    def _decided(self, number: int, decision: Decision, kv: KeyValue) -> None:
        if kv.version != 1:
            self._problem(f"the decision on plan {number} was changed at revision {kv.mod_revision}")
        if number == self._undecided:
            self._undecided = None
        if decision.commit:
            self.commits += self._newest is None or self._newest.kind == "config"
            self._check_leads(kv)
        else:
            self.aborts += 1

    def _agreed(self, agreed: Agreed, kv: KeyValue) -> None:
        before, self.agreed = self.agreed, agreed
        if before is not None and agreed.plan < before.plan:
            self._problem(f"what is agreed went back to plan {agreed.plan} at revision {kv.mod_revision}")
        if before is None or agreed.plan == before.plan or not self.spans or agreed.gate is None:
            return
        if self._newest is not None and self._newest.number == agreed.plan and self._newest.kind != "config":
            if (agreed.values, agreed.gate) != (before.values, before.gate):
                self._problem(f"plan {agreed.plan}, a command, changed a value at revision {kv.mod_revision}")
            return
        span = self.spans[-1]
        # While the run is paused, all ranks wait before the same step, and every change is applied there.
        least = span.gates[-1] + (before.directive.paused_at is None)
        if agreed.gate < least:
            self._problem(f"the gate of plan {agreed.plan}, {agreed.gate}, is not above the one before it")
        span.add(agreed.gate, agreed.values)

    def _problem(self, sentence: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(sentence)


def is_plan(key: str) -> bool:
    """Whether the key is that of a plan, not of its decision."""
    return _PLAN.search(key) is not None


def is_final(history: RunHistory, wanted: Mapping[str, Scalar]) -> bool:
    """Whether the operator's last values are agreed."""
    desired = {name: json.loads(text) for name, text in history.desired.items()}
    return history.agreed is not None and dict(history.agreed.values) == dict(wanted) == desired
