"""What a worker stores of its requests and of news about checkpoints."""

from __future__ import annotations

from dataclasses import replace

from instep.wire.documents import Pointer, Saving
from instep.wire.messages import (
    CheckpointIds,
    CheckpointNews,
    CommitCheckpoint,
    CommitResult,
    Inventory,
    ListCheckpoints,
    SaveStarted,
)
from instep.worker.checkpoint_inbox import OUTCOMES_KEPT, CheckpointInbox
from unit.parts import manifest


def commit(path: str) -> CommitCheckpoint:
    return CommitCheckpoint("c", replace(manifest(5, 9), path=path))


def outcome(path: str, problem: str | None = None) -> CommitResult:
    return CommitResult("5-9", path, problem)


def test_an_unanswered_request_is_sent_to_every_new_agent() -> None:
    ledger = CheckpointInbox()
    handed_in = ledger.commit(commit("/a"))
    number, question = ledger.ask(ListCheckpoints)
    started = ledger.repeat_to_agents("save", SaveStarted(Saving("5-9", 5, 9, 0), "c"))
    assert list(ledger.unanswered()) == [started, handed_in, question]
    assert ledger.open_commits == {"5-9"}
    ledger.receive(outcome("/a"))
    ledger.receive(Inventory(number, (), frozenset()))
    ledger.stop_repeating("save", "never said")
    assert ledger.take_answer(number) is not None
    assert list(ledger.unanswered()) == []
    assert not ledger.open_commits


def test_an_unexpected_answer_is_dropped() -> None:
    ledger = CheckpointInbox()
    number, _ = ledger.ask(ListCheckpoints)
    assert ledger.take_answer(number) is None
    ledger.receive(CheckpointIds(number, ()))
    assert not ledger.is_answered(number)


def test_the_first_outcome_of_a_commit_is_final() -> None:
    ledger = CheckpointInbox()
    ledger.commit(commit("/a"))
    ledger.receive(outcome("/a"))
    ledger.receive(outcome("/a", "another rank leads"))
    ledger.receive(outcome("/never asked"))
    assert ledger.outcome("/a") == outcome("/a")
    assert ledger.outcome("/never asked") is None


def test_the_outcomes_of_the_last_commits_are_kept() -> None:
    ledger = CheckpointInbox()
    for number in range(2 * OUTCOMES_KEPT):
        ledger.commit(commit(f"/{number}"))
        ledger.receive(outcome(f"/{number}"))
    assert ledger.outcome(f"/{OUTCOMES_KEPT - 1}") is None
    assert all(ledger.outcome(f"/{number}") for number in range(OUTCOMES_KEPT, 2 * OUTCOMES_KEPT))


def test_updates_name_the_saved_checkpoint_and_the_one_being_saved() -> None:
    ledger = CheckpointInbox()
    pointer, saving = Pointer("5-9", 5, 9), Saving("6-9", 6, 9, 0)
    ledger.receive(CheckpointNews(pointer, saving))
    assert (ledger.saved, ledger.saving) == (pointer, saving)
    ledger.receive(CheckpointNews())
    assert (ledger.saved, ledger.saving) == (None, None)


def test_a_save_into_a_directory_that_was_used_before_has_an_outcome_of_its_own() -> None:
    """After the first checkpoint was deleted, a run may reach its step again under the same leader. The outcome of the
    first commit is not that of the second."""
    ledger = CheckpointInbox()
    ledger.commit(commit("/a"))
    ledger.receive(outcome("/a"))
    assert ledger.outcome("/a") is not None
    ledger.begin("/a")
    assert ledger.outcome("/a") is None
