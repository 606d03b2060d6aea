"""Each check of the outcome of commands, on a correct history and on one that breaks a rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from chaos.checks.commands import AgreedAction, CommandHistory, Generation, Pause
from chaos.checks.compliance import actions, pauses, requests, saves
from chaos.checks.rank_records import ProcessRecord, process_records
from chaos.checks.registry import RegistryHistory, broken_files
from chaos.checks.verdicts import without_excused
from chaos.harness.step_log import StepLog, StepStart, read_step_log
from chaos.operator import keys_of
from chaos.recording import by_revision

from instep.etcd import Event, KeyValue
from instep.protocol.records import (
    Agreed,
    Command,
    Decision,
    Declined,
    Directive,
    Leader,
    Manifest,
    Plan,
    Pointer,
    Snapshot,
    View,
)
from instep.testing.checkers import Hold, check_exclusion
from instep.worker.manifest import write_manifest

KEYS = keys_of("/t")
TTL_S = 3.0


class Etcd:
    """Just enough of etcd to write a history: one revision per call."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.revision = 1

    def txn(self, *changes: tuple[str, str | None]) -> int:
        self.revision += 1
        for key, value in changes:
            kind = "delete" if value is None else "put"
            kv = KeyValue(key, (value or "").encode(), self.revision, self.revision, 1, 0)
            self.events.append(Event(kind, kv))  # type: ignore[arg-type]  # one of the two
        return self.revision


@pytest.fixture
def etcd() -> Etcd:
    return Etcd()


def begin(etcd: Etcd, number: int = 1, *, directive: Directive | None = None) -> None:
    view = View(number=number, world_size=1, schema_digest="d", nodes={}, start=Snapshot(), fresh=True)
    agreed = Agreed(plan=0, view=number, values={}, directive=directive or Directive())
    etcd.txn((KEYS.view, view.encode()), (KEYS.agreed, agreed.encode()))


def ask(etcd: Etcd, name: str, command: Command) -> None:
    etcd.txn((KEYS.command(name), command.encode()))


def commit(etcd: Etcd, number: int, name: str, command: Command, directive: Directive, *, keep: bool = False) -> None:
    """The plan of a command at gate 10 times its number, and its commit."""
    gate = number * 10
    plan = Plan(
        number=number,
        view=1,
        gate=gate,
        kind=command.kind,
        name=command.name,
        directive=directive,
        values={},
        previous={},
        revision=1,
        change_id=name,
    )
    etcd.txn((KEYS.plan(number), plan.encode()))
    agreed = Agreed(plan=number, view=1, values={}, directive=directive)
    changes = [(KEYS.decision(number), Decision(commit=True).encode()), (KEYS.agreed, agreed.encode())]
    etcd.txn(*changes, *([] if keep else [(KEYS.command(name), None)]))


def commanded(etcd: Etcd) -> CommandHistory:
    history = CommandHistory(KEYS, ["mark"])
    for number, events in by_revision(etcd.events):
        history.revision(number, events)
    return history


CHECKPOINT, PAUSE, RESUME = Command(kind="checkpoint"), Command(kind="pause"), Command(kind="resume")
MARK, UNKNOWN = Command(kind="action", name="mark"), Command(kind="action", name="unknown")


# -- what becomes of a command --------------------------------------------------------------


def test_commands_that_are_committed_declined_or_dropped_are_accounted_for(etcd: Etcd) -> None:
    begin(etcd)
    for name, command in (("a", CHECKPOINT), ("b", PAUSE), ("c", RESUME), ("d", MARK), ("e", UNKNOWN), ("f", MARK)):
        ask(etcd, name, command)
    commit(etcd, 1, "a", CHECKPOINT, Directive(save_at=10))
    commit(etcd, 2, "b", PAUSE, Directive(save_at=10, paused_at=20))
    commit(etcd, 3, "c", RESUME, Directive(save_at=10))
    commit(etcd, 4, "d", MARK, Directive(save_at=10))
    declined = Declined(command=UNKNOWN, revision=1, why="nobody knows it").encode()
    etcd.txn((KEYS.command("e"), None), (KEYS.declined_of("e"), declined))
    view = View(number=2, world_size=1, schema_digest="d", nodes={}, start=Snapshot(), fresh=True)
    etcd.txn((KEYS.view, view.encode()), (KEYS.command("f"), None))
    history = commanded(etcd)
    assert history.problems == []
    assert history.at_the_end() == []
    assert sorted(history.outcomes) == [
        "action committed",
        "action declined",
        "action dropped",
        "checkpoint committed",
        "pause committed",
        "resume committed",
    ]
    assert history.generations[0].saves == {10}
    assert history.generations[0].pauses == [Pause(20, "c")]
    assert history.generations[0].actions == [AgreedAction(4, 1, 40, "mark")]


def test_a_command_that_is_deleted_for_no_reason_is_lost(etcd: Etcd) -> None:
    begin(etcd)
    ask(etcd, "a", CHECKPOINT)
    etcd.txn((KEYS.command("a"), None))
    assert "command a, a checkpoint, was lost" in commanded(etcd).problems[0]


def test_a_command_that_is_still_there_at_the_end_is_lost(etcd: Etcd) -> None:
    begin(etcd)
    ask(etcd, "a", CHECKPOINT)
    assert "is still there" in commanded(etcd).at_the_end()[0]


def test_a_command_that_remains_after_its_commit_is_found(etcd: Etcd) -> None:
    begin(etcd)
    ask(etcd, "a", CHECKPOINT)
    commit(etcd, 1, "a", CHECKPOINT, Directive(save_at=10), keep=True)
    assert "was not deleted with it" in commanded(etcd).problems[0]


@pytest.mark.parametrize(
    ("asked", "done", "directive", "sentence"),
    [
        (PAUSE, PAUSE, Directive(), "pauses before step 10, and agreed is None"),
        (PAUSE, PAUSE, Directive(paused_at=11), "pauses before step 10, and agreed is 11"),
        (CHECKPOINT, CHECKPOINT, Directive(save_at=9), "saves step 10, and agreed is 9"),
        (CHECKPOINT, MARK, Directive(), "and what was asked for is"),
        (UNKNOWN, UNKNOWN, Directive(), "the unknown action unknown, was committed"),
    ],
    ids=["no pause", "another step", "another step to save", "another command", "unknown"],
)
def test_a_commit_that_is_not_what_was_asked_for_is_found(
    etcd: Etcd, asked: Command, done: Command, directive: Directive, sentence: str
) -> None:
    begin(etcd)
    ask(etcd, "a", asked)
    commit(etcd, 1, "a", done, directive)
    assert any(sentence in problem for problem in commanded(etcd).problems)


def test_a_pause_that_ends_by_itself_is_found(etcd: Etcd) -> None:
    begin(etcd)
    ask(etcd, "a", PAUSE)
    commit(etcd, 1, "a", PAUSE, Directive(paused_at=10))
    ask(etcd, "b", MARK)
    commit(etcd, 2, "b", MARK, Directive())
    assert "without a resume" in commanded(etcd).problems[0]


def test_a_pause_that_does_not_outlive_a_fresh_start_is_found(etcd: Etcd) -> None:
    begin(etcd)
    ask(etcd, "a", PAUSE)
    commit(etcd, 1, "a", PAUSE, Directive(paused_at=10))
    begin(etcd, 2, directive=Directive(paused_at=0))
    kept = commanded(etcd)
    assert kept.problems == []
    assert [generation.pauses for generation in kept.generations] == [[Pause(10)], [Pause(0)]]
    begin(etcd, 3)
    assert "did not outlive the start of view 3" in commanded(etcd).problems[0]


# -- what the ranks did --------------------------------------------------------------


def lived(rank: int = 0, first: int = 0, last: int = 30, **more: object) -> ProcessRecord:
    steps = list(range(first, last + 1))
    return ProcessRecord(rank, 1, 1, first, steps, [float(step) for step in steps], **more)  # type: ignore[arg-type]  # a test


def told(**more: object) -> CommandHistory:
    history = CommandHistory(KEYS, ["mark"])
    history.generations.append(Generation(1, **more))  # type: ignore[arg-type]  # a test
    return history


def test_checkpoints_are_asked_for_in_the_agreed_step_by_every_rank_that_ran_it() -> None:
    history = told(saves={10})
    assert requests([lived(requested={10}), lived(1, last=9), lived(2, first=11)], history) == (1, [])
    assert (
        "rank 1 (life 1, view 1) ran step 10 and was not" in requests([lived(requested={10}), lived(1)], history)[1][0]
    )
    assert requests([lived(), lived(1)], history)[1], "no rank did what was agreed"
    invented = requests([lived(requested={10, 12}), lived(1, requested={10})], history)[1]
    assert [problem.split()[0:2] for problem in invented] == [["rank", "0"], ["rank", "1"]]


@pytest.mark.parametrize(
    ("life", "wrong"),
    [
        (lived(acted=Counter({10: 1})), 0),
        (lived(acted=Counter({10: 2})), 1),
        (lived(acted=Counter({11: 1})), 2),
        (lived(), 1),
        (lived(last=9), 0),
        (lived(last=9, acted=Counter({10: 1})), 0),
        (lived(first=12, acted=Counter({12: 1})), 0),
        (ProcessRecord(0, 1, 2, 0, [10], [10.0]), 0),
        (ProcessRecord(0, 1, 2, 0, [10], [10.0], acted=Counter({10: 1})), 1),
    ],
    ids=[
        "once",
        "twice",
        "a step late",
        "never",
        "died before",
        "died in the gate",
        "standing beyond the gate",
        "came later",
        "came later and ran it",
    ],
)
def test_an_action_runs_once_before_the_agreed_step_on_the_ranks_that_promised_it(
    life: ProcessRecord, wrong: int
) -> None:
    assert len(actions([life], told(actions=[AgreedAction(1, 1, 10, "mark")]))[1]) == wrong


@pytest.mark.parametrize(
    ("ended_by", "asked_at", "wrong"),
    [("b", 9.5, 0), ("b", 10.5, 1), (None, 0.0, 1), ("c", 0.0, 1)],
    ids=["resumed before", "resumed after", "never resumed", "resumed by nobody"],
)
def test_no_step_runs_from_the_gate_of_a_pause_until_a_resume_is_requested(
    ended_by: str | None, asked_at: float, wrong: int
) -> None:
    """The rank began step n at n seconds, and the gate is 10."""
    history = told(pauses=[Pause(10, ended_by)])
    assert len(pauses([lived(last=40)], history, {"b": asked_at})[1]) == wrong
    assert pauses([lived(last=9)], told(pauses=[Pause(10)]), {})[1] == []


def test_a_process_is_read_from_its_lines_and_the_steps_that_it_began(tmp_path: Path) -> None:
    begun = StepLog(tmp_path / "rank.steps", 2)
    begun.write(7)
    begun.write(8)
    lines = [
        {"event": "joined", "rank": 0, "life": 2, "view": 3, "step": 7},
        {"event": "requested", "rank": 0, "life": 2, "step": 8},
        {"event": "acted", "rank": 0, "life": 2, "step": 8},
        {"event": "saved", "rank": 0, "life": 2, "step": 8, "outcome": "fenced", "id": "8-5"},
    ]
    (life,) = process_records(lines, read_step_log(tmp_path / "rank.steps"))
    assert (life.steps, life.requested, life.acted, len(life.saved)) == ([7, 8], {8}, {8: 1}, 1)
    assert life.times[0] <= life.times[1]
    assert isinstance(next(read_step_log(tmp_path / "rank.steps")), StepStart)


# -- checkpoints --------------------------------------------------------------

Write = tuple[str, str | None]


def manifest(step: int, token: int, path: str = "/nowhere", digest: str = "") -> Manifest:
    return Manifest(
        id=f"{step}-{token}",
        step=step,
        token=token,
        path=path,
        digest=digest,
        view=1,
        world_size=1,
        rank=0,
        host="h",
        node="n",
        duration_s=0.1,
        committed_at="now",
    )


def save(item: Manifest) -> list[Write]:
    pointer = Pointer(id=item.id, step=item.step, token=item.token).encode()
    return [(KEYS.checkpoint(item.id), item.encode()), (KEYS.latest, pointer), (KEYS.saved, pointer)]


def lead(etcd: Etcd, name: str = "a") -> int:
    token = etcd.txn((KEYS.candidate(name), "{}"))
    leader = Leader(node=name, rank=0, incarnation="i", candidate=KEYS.candidate(name), token=token)
    etcd.txn((KEYS.leader, leader.encode()))
    return token


def registered(etcd: Etcd) -> RegistryHistory:
    history = RegistryHistory(KEYS)
    for number, events in by_revision(etcd.events):
        history.revision(number, events)
    return history


def test_a_listed_checkpoint_whose_files_were_touched_is_found(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    item = manifest(5, 1, str(tmp_path), write_manifest(tmp_path).digest)
    assert broken_files([item]) == []
    (tmp_path / "model").write_text("weightz")
    assert "was changed" in broken_files([item])[0]
    assert "is missing" in broken_files([manifest(5, 1, str(tmp_path / "gone"))])[0]


def test_a_saver_that_was_told_another_outcome_than_the_history_shows_is_found(etcd: Etcd) -> None:
    token = lead(etcd)
    etcd.txn(*save(manifest(10, token)))
    registry, name, history = registered(etcd), f"10-{token}", told(saves={10})

    def problems(**line: object) -> list[str]:
        return saves([lived(saved=[line])], history, registry)[1]

    assert problems(outcome="committed", id=name) == []
    assert problems(outcome="does not lead") == problems(outcome="sent", id="11-1") == []
    assert "received that checkpoint 11-1 was committed" in problems(outcome="committed", id="11-1")[0]
    assert "was fenced, and it was committed" in problems(outcome="fenced", id=name)[0]
    assert "was forgotten, and it is registered" in problems(outcome="committed", id=name, forgotten=[name])[0]
    assert "without a request" in saves([], told(saves={11}), registry)[1][0]


# -- locks --------------------------------------------------------------


@pytest.mark.parametrize(
    ("thaws", "passes"),
    [([], False), ([12.0], True), ([8.9], False), ([13.9], False), ([8.0, 12.5], True)],
    ids=["no thaw", "just before", "more than a TTL before", "after the other was let in", "the second of two"],
)
def test_two_clients_may_believe_that_they_lead_only_within_a_ttl_of_a_thaw(thaws: list[float], passes: bool) -> None:
    """One believed until 14 s, the other from 13 s on."""
    holds = [Hold("lock", "a", 1, 10.0, 14.0), Hold("lock", "b", 2, 13.0, 20.0)]
    assert check_exclusion(without_excused(holds, thaws, TTL_S)).passed is passes
