"""From which checkpoint all ranks resume, and which ones are forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from coordination.test_commit_schedules import KEYS, manifest
from instep.etcd import KeyValue
from instep.protocol import checkpoints
from instep.protocol.checkpoints import CheckpointReads
from instep.protocol.records import Manifest, Pointer, Resume, Snapshot, Verified, View
from instep.protocol.resuming import (
    GONE,
    LINEAGE,
    ResumeOffer,
    VoteSituation,
    asked,
    is_open,
    missing,
    next_resume,
    offer,
)
from instep.recipes.fence import Fence
from unit.parts import left, view

FENCE = Fence(f"{KEYS.election}aaaaa", 9)
POINTER = Pointer(id="30-9", step=30, token=9)


def chain(*steps: int, token: int = 9) -> dict[str, Manifest]:
    """Checkpoints that resumed from one another, the oldest first."""
    found: dict[str, Manifest] = {}
    for step in steps:
        item = manifest(step, token, lineage=tuple(list(found)[::-1][:LINEAGE]))
        found[item.id] = item
    return found


def voting(checkpoint: str | None = "30-9", *, vote: bool = True, number: int = 1) -> View:
    two = view({"a": {0: 10, 1: 11}, "b": {2: 12}}, number=number)
    return two.model_copy(update={"start": Snapshot(checkpoint=checkpoint, vote=vote)})


def good(*ranks: int, id: str = "30-9", view: int = 1) -> Verified:
    return Verified(view=view, id=id, ranks=ranks)


def bad(problem: str = "damaged", *, id: str = "30-9", view: int = 1) -> Verified:
    return Verified(view=view, id=id, problem=problem)


def poll(verified: Mapping[str, Verified], **more: Any) -> VoteSituation:
    given = {"view": voting(), "resume": None, "left": {}, "manifests": chain(10, 20, 30), **more}
    return VoteSituation(verified=verified, **given)


def test_an_offer_is_final_once_every_rank_found_it_good() -> None:
    assert next_resume(poll({})) is None
    assert next_resume(poll({"a": good(0, 1)})) is None
    assert next_resume(poll({"a": good(0), "b": good(2)})) is None
    final = next_resume(poll({"a": good(0, 1), "b": good(2)}))
    assert final == Resume(view=1, id="30-9", final=True)
    assert next_resume(poll({"a": good(0, 1), "b": good(2)}, resume=final)) is None


def test_a_rank_that_has_left_is_not_required() -> None:
    assert next_resume(poll({"a": good(0, 1)}, left={"b": left(2)})) == Resume(view=1, id="30-9", final=True)


def test_answers_about_another_checkpoint_do_not_count() -> None:
    for other in (good(0, 1, id="20-9"), good(0, 1, view=7)):
        assert next_resume(poll({"a": other, "b": good(2)})) is None


def test_one_fault_leads_to_the_checkpoint_before_it() -> None:
    second = next_resume(poll({"a": bad(), "b": good(2)}))
    assert second == Resume(view=1, id="20-9", reasons={"30-9": "damaged"})
    third = next_resume(poll({"b": bad("truncated", id="20-9")}, resume=second))
    assert third == Resume(view=1, id="10-9", reasons={"30-9": "damaged", "20-9": "truncated"})
    none = next_resume(poll({"b": bad("gone", id="10-9")}, resume=third))
    assert none is not None
    assert (none.id, none.final, set(none.reasons)) == (None, True, {"10-9", "20-9", "30-9"})


def test_a_fallback_never_uses_an_abandoned_checkpoint() -> None:
    manifests = {**chain(10, 20, 30), "25-12": manifest(25, 12, lineage=("10-9",))}
    fallen = next_resume(poll({"a": bad(id="25-12")}, view=voting("25-12"), manifests=manifests))
    assert fallen is not None
    assert fallen.id == "10-9"


def test_forgotten_ancestors_are_skipped() -> None:
    manifests = chain(10, 20, 30)
    del manifests["20-9"]
    fallen = next_resume(poll({"a": bad()}, manifests=manifests))
    assert fallen is not None
    assert fallen.id == "10-9"


def test_a_checkpoint_older_than_all_named_ancestors_is_found_by_its_step() -> None:
    everything = chain(*range(1, LINEAGE + 5))
    newest = list(everything)[-1]
    manifests = {key: everything[key] for key in ("1-9", "2-9", newest)}
    fallen = next_resume(poll({"a": bad(id=newest)}, view=voting(newest), manifests=manifests))
    assert fallen is not None
    assert fallen.id == "2-9"


def test_a_checkpoint_without_a_record_counts_as_faulty() -> None:
    manifests = chain(10, 20)
    fallen = next_resume(poll({"a": good(0, 1)}, manifests=manifests))
    assert fallen == Resume(view=1, id="20-9", reasons={"30-9": GONE})


def test_only_a_voting_view_is_asked() -> None:
    assert asked(voting(), None) == Resume(view=1, id="30-9")
    assert asked(voting(vote=False), None) == Resume(view=1, id="30-9", final=True)
    assert asked(voting(None), None) == Resume(view=1, id=None, final=True)
    of_another_view = Resume(view=7, id="10-9", final=True)
    assert asked(voting(), of_another_view) == Resume(view=1, id="30-9")
    assert is_open(voting(), of_another_view)
    assert not is_open(voting(vote=False), None)
    assert not is_open(None, None)


def test_ranks_without_a_report_are_named() -> None:
    assert missing(voting(), asked(voting(), None), [good(0), good(2, view=7)]) == (1, 2)


@pytest.mark.parametrize(
    ("fresh", "before", "resume", "newer", "expected"),
    [
        (True, None, None, False, ResumeOffer("30-9", vote=True)),
        (True, voting(), Resume(view=1, id="10-9", final=True), True, ResumeOffer("30-9", vote=True)),
        (False, voting(), None, False, ResumeOffer("30-9", vote=True)),
        (False, voting(), Resume(view=1, id="20-9"), True, ResumeOffer("30-9", vote=True)),
        (False, voting(), Resume(view=1, id="20-9", final=True), True, ResumeOffer("20-9", vote=False)),
        (False, voting(), Resume(view=1, id="20-9", final=True), False, ResumeOffer("30-9", vote=False)),
        (False, voting(), Resume(view=1, id=None, final=True), True, ResumeOffer(None, vote=False)),
        (False, voting(None), None, False, ResumeOffer("30-9", vote=False)),
        (False, voting(vote=False), None, False, ResumeOffer("30-9", vote=False)),
    ],
)
def test_the_checkpoint_that_the_next_view_starts_from(
    fresh: bool, before: View | None, resume: Resume | None, newer: bool, expected: ResumeOffer
) -> None:
    assert offer(before, fresh, POINTER, resume, resume_is_newer=newer) == expected


def test_a_run_without_checkpoints_has_nothing_to_vote_on() -> None:
    assert offer(None, True, None, None, resume_is_newer=False) == ResumeOffer(None, vote=False)


# -- the registry -----------------------------------------------------------------------------------------------------


def pointer(checkpoint_id: str, revision: int) -> KeyValue:
    step, token = map(int, checkpoint_id.split("-"))
    text = Pointer(id=checkpoint_id, step=step, token=token).encode().encode()
    return KeyValue(KEYS.latest, text, revision, revision, 1, 0)


def test_the_lineage_of_a_checkpoint_continues_the_newest_or_the_agreed_one() -> None:
    found = CheckpointReads(None, pointer("30-9", 50), None)
    newest = manifest(30, 9, lineage=("20-9", "10-9"))
    agreed = Resume(view=1, id="20-9", final=True)
    assert checkpoints.lineage(found, newest, None, 0) == ("30-9", "20-9", "10-9")
    assert checkpoints.lineage(found, newest, agreed, 49) == ("30-9", "20-9", "10-9")
    assert checkpoints.lineage(found, newest, agreed, 51) == ("20-9", "10-9")
    assert checkpoints.lineage(found, newest, Resume(view=1, id="30-9", final=True), 51) == ("30-9", "20-9", "10-9")
    assert checkpoints.lineage(found, newest, Resume(view=1, id=None, final=True), 51) == ()
    assert checkpoints.lineage(found, newest, Resume(view=1, id="20-9"), 51) == ("30-9", "20-9", "10-9")
    assert checkpoints.lineage(found, None, None, 0) == ("30-9",)
    assert checkpoints.lineage(CheckpointReads(None, None, None), None, None, 0) == ()
    long = manifest(30, 9, lineage=tuple(f"{n}-9" for n in range(29, 29 - LINEAGE, -1)))
    assert len(checkpoints.lineage(found, long, None, 0)) == LINEAGE


def test_the_newest_is_never_forgotten_nor_anything_while_that_is_unknown() -> None:
    assert checkpoints.forget(KEYS, "30-9", pointer("30-9", 50)) is None
    assert checkpoints.forget(KEYS, "30-9", None) is None
    txn = checkpoints.forget(KEYS, "20-9", pointer("30-9", 50))
    assert txn is not None
    assert [compare.text for compare in txn.compares] == [
        f"create_revision of {KEYS.checkpoint('20-9')} > 0",
        f"mod_revision of {KEYS.latest} == 50",
        f"no key under {KEYS.readers('20-9')}",
    ]


def test_a_retry_recognizes_its_own_commit_whatever_its_lineage() -> None:
    mine = manifest(30, 9)
    assert checkpoints.is_same(replace(mine, lineage=("20-9",)), mine)
    assert not checkpoints.is_same(replace(mine, path="/other"), mine)
    assert not checkpoints.is_same(None, mine)
