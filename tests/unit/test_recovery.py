"""What the leader does in an epoch that is not settled, and how it is told."""

from __future__ import annotations

from dataclasses import replace

from instep.coordination.actions import Settle
from instep.coordination.membership import Registered
from instep.coordination.records import Epoch, Head, Held
from instep.coordination.recovery import explain, next_step
from instep.coordination.situation import Situation
from unit.parts import agreed, registered, view

EPOCH = Epoch(number=1, why="etcd's history went back: its cluster id is b, and was a")
ONES, TWOS = agreed(plan=2, digest="aa", parent="1"), agreed(plan=2, digest="bb", parent="2")


def _said(rank: int, digest: str) -> Registered:
    item = registered(rank, 10 + rank, node="ab"[rank])
    head = Head(plan=2, digest=digest, epoch=1, told=2)
    return replace(item, member=item.member.model_copy(update={"head": head}))


SPLIT = Situation(
    view=view({"a": {0: 10}, "b": {1: 11}}),
    epoch=EPOCH,
    registered=(_said(0, "aa"), _said(1, "bb")),
    held={"a": Held(agreed=ONES), "b": Held(agreed=TWOS)},
)


def test_ranks_whose_decisions_do_not_follow_from_one_another_stop_changes() -> None:
    action = next_step(SPLIT)
    assert isinstance(action, Settle)
    assert (action.epoch.settled, action.agreed) == (False, None)
    problem = action.epoch.problem or ""
    assert problem.startswith("rank 0 holds decision 2 (aa), rank 1 holds decision 2 (bb), and neither follows")
    assert next_step(replace(SPLIT, epoch=action.epoch)) is None


def test_new_ranks_settle_an_epoch_that_the_ranks_before_could_not() -> None:
    stuck = EPOCH.model_copy(update={"problem": "rank 0 holds something else than rank 1"})
    action = next_step(replace(SPLIT, epoch=stuck, registered=(registered(0, 20), registered(1, 21))))
    assert isinstance(action, Settle)
    assert (action.epoch.settled, action.epoch.problem) == (True, None)


def test_an_epoch_is_told_with_what_it_means_and_what_to_do() -> None:
    stuck = EPOCH.model_copy(update={"problem": "rank 0 holds x\nrank 1 holds y"})
    assert "Nothing needs to be done" in explain(EPOCH)
    assert "rank 0 holds x rank 1 holds y. Training continues, but no change is made: restart all" in explain(stuck)
    assert explain(EPOCH.model_copy(update={"settled": True})).endswith("changes are made as usual")
