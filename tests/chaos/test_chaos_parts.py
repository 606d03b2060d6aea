"""The pure parts of chaos: the plan of faults, the clock of stalls, and the checks of a run's history."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from chaos.checks.run_history import RunHistory
from chaos.checks.steps import against_history, read_runs
from chaos.fault_plan import KINDS, LONGEST_GAP_S, Lane, load, plan, save
from chaos.operator import keys_of
from chaos.stall_monitor import StallClock

from instep.etcd import Event, KeyValue
from instep.protocol.records import Agreed, Decision, Directive, Leader, Plan, Snapshot, View

HOUR_S = 3600.0
KEYS = keys_of("/t")
VALUES = {"lr": 0.1}


def test_a_seed_always_gives_the_same_plan(tmp_path: Path) -> None:
    assert plan(7, 300) == plan(7, 300) != plan(8, 300)
    save(plan(7, 300), tmp_path / "plan")
    assert load(tmp_path / "plan") == plan(7, 300)


def test_the_plan_of_an_hour_has_about_twice_the_required_faults() -> None:
    for seed in range(5):
        done = Counter(fault.kind for fault in plan(seed, HOUR_S))
        assert set(done) == {kind.name for kind in KINDS}
        assert done["member killed"] + done["member frozen"] > 200
        assert done["agent killed"] > 100
        assert done["worker killed"] > 250


def test_faults_of_one_lane_never_overlap_and_all_end_in_time() -> None:
    for lane in Lane:
        faults = [fault for fault in plan(3, 600) if fault.lane is lane]
        for before, after in itertools.pairwise(faults):
            assert 0 < after.at_s - before.at_s - before.for_s <= LONGEST_GAP_S + 0.01
        assert faults[-1].at_s + faults[-1].for_s <= 600


def test_a_stall_is_explained_only_while_something_is_broken() -> None:
    clock = StallClock()
    for second in range(10):
        clock.look(float(second), (1, 5), broken=second < 4)
    assert clock.stalled_s == 9.0
    assert clock.unexplained_s == 6.0
    clock.look(10.0, (1, 6), broken=False)
    assert clock.stalled_s == clock.unexplained_s == 0.0
    assert clock.longest_unexplained_s == 6.0


class Etcd:
    """Just enough of etcd to write a history: keys, revisions, events."""

    def __init__(self) -> None:
        self.revision = 1
        self.events: list[Event] = []
        self._created: dict[str, tuple[int, int]] = {}

    def write(self, *changes: tuple[str, str | None]) -> int:
        self.revision += 1
        for key, value in changes:
            created, version = self._created.get(key, (self.revision, 0))
            if value is None:
                del self._created[key]
                self.events.append(Event("delete", KeyValue(key, b"", 0, self.revision, 0, 0)))
                continue
            self._created[key] = (created, version + 1)
            kv = KeyValue(key, value.encode(), created, self.revision, version + 1, 0)
            self.events.append(Event("put", kv))
        return self.revision


@pytest.fixture
def etcd() -> Etcd:
    return Etcd()


def lead(etcd: Etcd, name: str = "a", token: int | None = None) -> int:
    key = KEYS.candidate(name)
    created = etcd.write((key, "{}"))
    leader = Leader(node=name, rank=0, incarnation="i", candidate=key, token=created if token is None else token)
    etcd.write((KEYS.leader, leader.encode()))
    return created


def begin(etcd: Etcd) -> None:
    view = View(
        number=1, world_size=1, schema_digest="d", nodes={}, start=Snapshot(values={"lr": 1.0}, plan=0), fresh=True
    )
    agreed = Agreed(plan=0, view=1, values={"lr": 1.0})
    etcd.write((KEYS.view, view.encode()), (KEYS.agreed, agreed.encode()))


def open_plan(etcd: Etcd, number: int) -> None:
    proposed = Plan(number=number, view=1, gate=number * 10, values=VALUES, previous={}, revision=1)
    etcd.write((KEYS.plan(number), proposed.encode()))


def commit(etcd: Etcd, number: int, lr: float) -> None:
    open_plan(etcd, number)
    agreed = Agreed(plan=number, view=1, values={"lr": lr}, gate=number * 10, previous={})
    etcd.write((KEYS.decision(number), Decision(commit=True).encode()), (KEYS.agreed, agreed.encode()))


def change_at(etcd: Etcd, number: int, gate: int, lr: float, directive: Directive | None = None) -> None:
    proposed = Plan(number=number, view=1, gate=gate, values={"lr": lr}, previous={}, revision=1)
    etcd.write((KEYS.plan(number), proposed.encode()))
    agreed = Agreed(plan=number, view=1, values={"lr": lr}, gate=gate, previous={}, directive=directive or Directive())
    etcd.write((KEYS.decision(number), Decision(commit=True).encode()), (KEYS.agreed, agreed.encode()))


def order(etcd: Etcd, number: int, lr: float, directive: Directive) -> None:
    """A pause that follows the change with gate 10, and leaves `lr` agreed."""
    proposed = Plan(number=number, view=1, gate=20, kind="pause", values={}, previous={}, revision=1)
    etcd.write((KEYS.plan(number), proposed.encode()))
    agreed = Agreed(plan=number, view=1, values={"lr": lr}, gate=10, previous={}, directive=directive)
    etcd.write((KEYS.decision(number), Decision(commit=True).encode()), (KEYS.agreed, agreed.encode()))


def replayed(etcd: Etcd) -> RunHistory:
    history = RunHistory(KEYS)
    history.feed(etcd.events)
    return history


def test_a_history_by_the_rules_is_accepted(etcd: Etcd) -> None:
    lead(etcd)
    begin(etcd)
    commit(etcd, 1, 0.1)
    etcd.write((KEYS.candidate("a"), None), (KEYS.candidate("b"), "{}"))
    leader = Leader(node="b", rank=0, incarnation="i", candidate=KEYS.candidate("b"), token=etcd.revision)
    etcd.write((KEYS.leader, leader.encode()))
    commit(etcd, 2, 0.2)
    history = replayed(etcd)
    assert history.problems == []
    assert (history.commits, history.terms, history.views) == (2, 2, 1)


def test_changes_share_a_gate_only_while_paused(etcd: Etcd) -> None:
    lead(etcd)
    begin(etcd)
    commit(etcd, 1, 0.1)
    change_at(etcd, 2, 10, 0.2)
    assert "is not above the one before it" in replayed(etcd).problems[0]


def test_changes_made_while_paused_apply_from_the_waiting_step(etcd: Etcd) -> None:
    lead(etcd)
    begin(etcd)
    commit(etcd, 1, 0.1)
    order(etcd, 2, 0.1, Directive(paused_at=20))
    change_at(etcd, 3, 20, 0.2, Directive(paused_at=20))
    change_at(etcd, 4, 20, 0.3, Directive(paused_at=20))
    history = replayed(etcd)
    assert history.problems == []
    assert history.commits == 3, "a command is no change"
    assert [history.spans[0].at(step)["lr"] for step in (9, 10, 19, 20)] == [1.0, 0.1, 0.1, 0.3]


def test_a_command_that_changes_a_value_is_found(etcd: Etcd) -> None:
    lead(etcd)
    begin(etcd)
    commit(etcd, 1, 0.1)
    order(etcd, 2, 0.2, Directive(paused_at=20))
    assert "a command, changed a value" in replayed(etcd).problems[0]


def test_a_write_after_the_leaders_candidate_was_gone_is_found(etcd: Etcd) -> None:
    lead(etcd)
    begin(etcd)
    etcd.write((KEYS.candidate("a"), None))
    open_plan(etcd, 1)
    assert "without a leader" in replayed(etcd).problems[0]


def test_a_token_that_falls_is_found(etcd: Etcd) -> None:
    lead(etcd, "a")
    lead(etcd, "b", token=1)
    assert any("the token 1 follows" in problem for problem in replayed(etcd).problems)


def test_a_leader_that_is_not_the_oldest_candidate_is_found(etcd: Etcd) -> None:
    etcd.write((KEYS.candidate("older"), "{}"))
    lead(etcd, "b")
    assert "not of the oldest candidate" in replayed(etcd).problems[0]


def test_a_plan_opened_before_the_last_was_decided_is_found(etcd: Etcd) -> None:
    lead(etcd)
    begin(etcd)
    open_plan(etcd, 1)
    open_plan(etcd, 2)
    assert "while plan 1 was not decided" in replayed(etcd).problems[0]


def test_a_decision_that_is_changed_is_found(etcd: Etcd) -> None:
    lead(etcd)
    begin(etcd)
    commit(etcd, 1, 0.1)
    etcd.write((KEYS.decision(1), Decision(commit=False).encode()))
    assert "decision on plan 1 was changed" in replayed(etcd).problems[0]


def records(path: Path, *lines: dict[str, object]) -> Path:
    common = {"rank": 0, "epoch": 1, "life": 1, "view": 1}
    path.write_text("".join(json.dumps({**common, **line}) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("second", "last", "wrong"),
    [(10, 30, 0), (11, 30, 1), (9, 30, 1)],
    ids=["at the gate", "a step late", "a step early"],
)
def test_a_rank_must_change_exactly_at_the_gate(etcd: Etcd, tmp_path: Path, second: int, last: int, wrong: int) -> None:
    lead(etcd)
    begin(etcd)
    commit(etcd, 1, 0.5)
    path = records(
        tmp_path / "rank",
        {"event": "runs", "step": 0, "values": {"lr": 1.0}},
        {"event": "runs", "step": second, "values": {"lr": 0.5}},
    )
    steps, problems = against_history(read_runs(path, {1: last}), replayed(etcd))
    assert steps == last + 1
    assert len(problems) == wrong


def test_a_killed_process_has_run_the_steps_in_the_shared_state(tmp_path: Path) -> None:
    path = records(
        tmp_path / "rank",
        {"event": "runs", "step": 0, "values": VALUES},
        {"event": "joined", "step": 8, "life": 2},
        {"event": "runs", "step": 8, "life": 2, "values": VALUES},
        {"event": "done", "step": 20, "life": 2, "values": VALUES},
    )
    assert [(run.life, run.first, run.last) for run in read_runs(path, {1: 7})] == [(1, 0, 7), (2, 8, 20)]
