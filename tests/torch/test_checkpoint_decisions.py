"""What a Checkpointer decides without asking anybody: whose turn it is, and what may be deleted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from instep.torch._checkpoint.retention import (
    CommittedCheckpoint,
    SlotDirectory,
    slot_directory_named,
    to_delete,
    to_forget,
)
from instep.torch._checkpoint.save_election import PATIENCE_S, SILENCE_S, SaveElection, SaveVerdict

STEPS = [90, 80, 70, 60, 50, 40, 30]
COMMITTED = [CommittedCheckpoint(f"{step}-1", step) for step in STEPS]


@pytest.mark.parametrize(
    ("keep", "keep_every", "forgotten"),
    [
        (1, 0, STEPS[1:]),
        (3, 0, STEPS[3:]),
        (99, 0, []),
        (2, 20, [70, 50]),
        (1, 1, []),
        (2, 45, [70, 60, 40, 30]),
    ],
)
def test_the_last_k_are_kept_and_the_first_of_every_n_steps(keep: int, keep_every: int, forgotten: list[int]) -> None:
    assert to_forget(COMMITTED, keep, keep_every) == tuple(f"{step}-1" for step in forgotten)


def a_line(*steps: int) -> list[CommittedCheckpoint]:
    """The newest first, each of which went on from the one after it."""
    return [CommittedCheckpoint(f"{step}-1", step, (f"{before}-1",)) for step, before in pairwise(steps)]


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        (range(799, 0, -50), [799, 599, 399, 199]),  # if (step + 1) % 50 == 0
        (range(800, -1, -50), [800, 600, 400, 200]),  # if step % 50 == 0
        (range(199, -1, -1), [199]),  # every step
        ((730, 610, 590, 410, 390, 205, 150), [610, 410, 205]),  # as an operator asks for it
    ],
)
def test_whichever_way_a_loop_counts_one_of_every_n_steps_is_kept_for_good(
    steps: Sequence[int], kept: list[int]
) -> None:
    line = a_line(*steps, -1)
    forgotten = to_forget(line, 1, 200, line[0].id)
    assert [item.step for item in line if item.id not in forgotten and item is not line[0]] == [
        step for step in kept if step != line[0].step
    ]


def test_what_an_earlier_start_had_saved_beyond_the_newest_is_not_forgotten() -> None:
    """The script has begun at step 0 again, and this training knows nothing of what was there."""
    found = [
        CommittedCheckpoint("49-9", 49, ("199-1",)),
        *(CommittedCheckpoint(f"{step}-1", step, is_own=False) for step in (199, 149, 40, 20)),
    ]
    assert to_forget(found, 1, 0, "49-9") == ("40-1", "20-1")


def test_after_a_run_was_taken_back_the_last_are_those_committed_last() -> None:
    """Steps 20 and 30 were saved after the run had come to step 90 and was taken back."""
    committed = [CommittedCheckpoint("30-2", 30), CommittedCheckpoint("20-2", 20), *COMMITTED[:2]]
    assert to_forget(committed, 2, 0) == ("90-1", "80-1")


def test_what_the_newest_went_on_from_is_kept_before_what_was_left_behind() -> None:
    """The run went from step 30 to 90, back to 40, and has saved 50 since. The lineage of 50 says no more than that."""
    line = [
        CommittedCheckpoint("50-2", 50, ("40-1",)),
        *COMMITTED[:5],
        CommittedCheckpoint("40-1", 40, ("30-1",)),
        COMMITTED[6],
    ]
    assert to_forget(line, 3, 0, "50-2") == ("90-1", "80-1", "70-1", "60-1", "50-1")
    assert to_forget(line, 4, 0, "50-2") == ("80-1", "70-1", "60-1", "50-1")
    assert to_forget(line, 1, 0, "40-1")[:2] == ("50-2", "90-1")  # it was just taken back again
    assert "40-1" not in to_forget(line, 1, 0, "40-1")


@pytest.mark.parametrize("newest", [None, "90-1", "never heard of"])
def test_without_a_lineage_the_newest_are_kept(newest: str | None) -> None:
    assert to_forget(COMMITTED, 2, 0, newest) == tuple(item.id for item in COMMITTED[2:])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("step-7-12", (7, 12)),
        ("step-7-12.3", (7, 12)),
        ("step-7", None),
        ("step-7-12.", None),
        ("step-7-12.old", None),
        ("step--7-12", None),
        ("step-7-12/..", None),
        ("step-٧-12", None),
        ("", None),
    ],
)
def test_only_names_that_a_checkpointer_gives_are_attempts(name: str, place: tuple[int, int] | None) -> None:
    attempt = slot_directory_named(name, whole=False)
    assert (attempt and (attempt.step, attempt.token)) == place


def deleted(
    attempt: SlotDirectory,
    *,
    known: bool = False,
    committed: bool = False,
    unlisted: bool = False,
    pending: bool = False,
    before: bool = False,
) -> bool:
    """Whether the leader with token 10 deletes it."""
    return bool(
        to_delete(
            [attempt],
            committed=[attempt.name] if committed else [],
            unlisted=[f"{attempt.step}-{attempt.token}"] if unlisted else [],
            pending=[attempt.name] if pending else [],
            before=[attempt.name] if before else [],
            known={(attempt.step, attempt.token)} if known else set(),
            token=10,
        )
    )


def an_attempt(token: int, *, whole: bool) -> SlotDirectory:
    return SlotDirectory(f"step-5-{token}", 5, token, whole)


def test_an_unfinished_attempt_of_a_leader_before_is_deleted() -> None:
    assert deleted(an_attempt(9, whole=False))


@pytest.mark.parametrize("known", [False, True])
def test_nothing_of_a_later_leader_is_deleted(known: bool) -> None:
    assert not deleted(an_attempt(11, whole=False), known=known)
    assert not deleted(an_attempt(11, whole=True), known=known)


def test_a_whole_one_is_deleted_only_when_this_run_is_known_to_have_made_it() -> None:
    """Else it may be a good checkpoint that the etcd of today has never heard of."""
    assert not deleted(an_attempt(9, whole=True))
    assert deleted(an_attempt(9, whole=True), known=True)


def test_what_is_committed_or_may_be_is_never_deleted() -> None:
    for whole in (False, True):
        assert not deleted(an_attempt(9, whole=whole), known=True, committed=True)
        assert not deleted(an_attempt(9, whole=whole), known=True, pending=True)
        assert not deleted(an_attempt(9, whole=whole), known=True, unlisted=True)


def test_what_is_marked_as_committed_is_never_deleted_for_being_unknown_to_the_registry() -> None:
    attempt = slot_directory_named("step-5-9", whole=True, committed=True)
    assert attempt is not None
    assert not deleted(attempt, known=True)


def test_a_whole_one_that_was_there_before_is_not_deleted_although_its_token_is_known() -> None:
    """A new etcd counts its revisions from 1, and so gives the tokens of the one that was lost once more."""
    assert not deleted(an_attempt(9, whole=True), known=True, before=True)
    assert not deleted(an_attempt(10, whole=True), known=True, before=True)
    assert deleted(an_attempt(9, whole=False), before=True)


def look(
    election: SaveElection, now: float, *, saved: bool = False, leads: bool = False, saving: int | None = None
) -> SaveVerdict:
    return election.decide(saved=saved, leads=leads, saving=saving, now=now)


def test_a_rank_waits_as_long_as_somebody_saves_this_step() -> None:
    election = SaveElection(5, now=0)
    assert look(election, 1) is SaveVerdict.WAIT
    for now in range(2, 500, 100):
        assert look(election, now, saving=5) is SaveVerdict.WAIT
    assert look(election, 500, saved=True) is SaveVerdict.SAVED


def test_a_rank_that_comes_to_lead_takes_over_unless_it_is_saved_by_then() -> None:
    election = SaveElection(5, now=0)
    assert look(election, 1, saving=5) is SaveVerdict.WAIT
    assert look(election, 2, saving=5, leads=True) is SaveVerdict.LEAD
    assert look(election, 2, saved=True, leads=True) is SaveVerdict.SAVED


def test_a_rank_goes_on_when_nobody_begins_or_who_had_begun_gives_up() -> None:
    assert look(SaveElection(5, now=0), SILENCE_S) is SaveVerdict.NOBODY
    assert look(SaveElection(5, now=0), SILENCE_S, saving=4) is SaveVerdict.NOBODY
    election = SaveElection(5, now=0)
    assert look(election, 100, saving=5) is SaveVerdict.WAIT
    assert look(election, 100 + SILENCE_S / 2) is SaveVerdict.WAIT  # time for another to take over
    assert look(election, 100 + SILENCE_S) is SaveVerdict.NOBODY


def test_a_rank_waits_longer_for_a_leader_that_is_there_but_not_once_that_one_has_given_up() -> None:
    election = SaveElection(5, now=0)
    election.wait_longer()
    assert look(election, PATIENCE_S - 1) is SaveVerdict.WAIT
    assert look(election, PATIENCE_S) is SaveVerdict.NOBODY
    assert look(election, PATIENCE_S, saving=5) is SaveVerdict.WAIT
    assert look(election, PATIENCE_S + SILENCE_S) is SaveVerdict.NOBODY
