"""What a worker keeps of what it has asked, and hears of checkpoints."""

from __future__ import annotations

from typing import Any

from instep.worker.ledger import OUTCOMES_KEPT, Ledger

COMMIT = {"t": "archive", "do": "commit", "manifest": {"id": "5-9"}}


def outcome(path: str, kind: str = "committed") -> dict[str, Any]:
    return {"t": "archive", "do": kind, "id": "5-9", "path": path, "text": "another leads"}


def test_what_is_not_answered_is_said_to_every_agent() -> None:
    ledger = Ledger()
    commit = ledger.commit("/a", COMMIT)
    number, question = ledger.ask("list")
    opening = ledger.keep_saying("open", {"do": "open"})
    assert list(ledger.unanswered()) == [opening, commit, question]
    assert ledger.open_commits == {"5-9"}
    ledger.hear(outcome("/a"))
    ledger.hear({"t": "archive", "do": "answer", "q": number, "manifests": []})
    ledger.keep_quiet("open", "never said")
    assert ledger.take_answer(number) is not None
    assert list(ledger.unanswered()) == []
    assert not ledger.open_commits


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    ledger = Ledger()
    number, _ = ledger.ask("list")
    assert ledger.take_answer(number) is None
    ledger.hear({"t": "archive", "do": "answer", "q": number})
    assert not ledger.is_answered(number)


def test_the_first_outcome_of_a_commit_stands() -> None:
    ledger = Ledger()
    ledger.commit("/a", COMMIT)
    ledger.hear(outcome("/a"))
    ledger.hear(outcome("/a", "fenced"))
    ledger.hear(outcome("/never asked"))
    assert (ledger.outcome("/a") or {})["do"] == "committed"
    assert ledger.outcome("/never asked") is None


def test_the_outcomes_of_the_last_commits_are_kept() -> None:
    ledger = Ledger()
    for number in range(2 * OUTCOMES_KEPT):
        ledger.commit(f"/{number}", COMMIT)
        ledger.hear(outcome(f"/{number}"))
    assert ledger.outcome(f"/{OUTCOMES_KEPT - 1}") is None
    assert all(ledger.outcome(f"/{number}") for number in range(OUTCOMES_KEPT, 2 * OUTCOMES_KEPT))


def test_news_say_what_is_saved_and_what_is_being_saved() -> None:
    ledger = Ledger()
    pointer = {"id": "5-9", "step": 5, "token": 9, "revision": 40, "of": "a newer version"}
    saving = {"id": "6-9", "step": 6, "token": 9, "rank": 0}
    ledger.hear({"t": "archive", "do": "news", "saved": pointer, "saving": saving})
    assert ledger.saved is not None
    assert (ledger.saved.id, ledger.saved.revision) == ("5-9", 40)
    assert ledger.saving is not None
    assert ledger.saving.rank == 0
    ledger.hear({"t": "archive", "do": "news", "saved": None, "saving": None})
    assert ledger.saved is None
    assert ledger.saving is None
    ledger.hear({"t": "archive", "do": "something of a newer version"})


def test_a_save_into_a_directory_that_was_used_before_has_an_outcome_of_its_own() -> None:
    """After the first checkpoint was deleted, a run may reach its step again under the same leader. The outcome of the
    first commit is not that of the second."""
    ledger = Ledger()
    ledger.commit("/a", COMMIT)
    ledger.hear(outcome("/a"))
    assert ledger.outcome("/a") is not None
    ledger.begin("/a")
    assert ledger.outcome("/a") is None
