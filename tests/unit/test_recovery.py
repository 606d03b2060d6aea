"""What the leader does in an epoch that is not settled, and how the epoch is explained."""

from __future__ import annotations

from dataclasses import replace

from instep.protocol.actions import RaiseEpoch, SettleEpoch
from instep.protocol.leading import next_action
from instep.protocol.membership import RegisteredWorker
from instep.protocol.records import Epoch, Head, Held
from instep.protocol.recovery import NO_EPOCH_LEFT, WHY, epoch_after, explain, is_under_way, next_step
from instep.protocol.situation import Situation
from instep.recipes.token import MAX_EPOCH
from unit.parts import agreed, registered, view

EPOCH = Epoch(number=1, why="etcd's history went back: its cluster id is b, and was a")
ONES, TWOS = agreed(plan=2, digest="aa", parent="1"), agreed(plan=2, digest="bb", parent="2")


def _said(rank: int, digest: str) -> RegisteredWorker:
    item = registered(rank, 10 + rank, node="ab"[rank])
    head = Head(plan=2, digest=digest, told=2)
    return replace(item, member=item.member.model_copy(update={"head": head, "epoch": 1}))


SPLIT = Situation(
    view=view({"a": {0: 10}, "b": {1: 11}}),
    epoch=EPOCH,
    registered=(_said(0, "aa"), _said(1, "bb")),
    held={"a": Held(agreed=ONES), "b": Held(agreed=TWOS)},
)


def test_ranks_whose_decisions_do_not_follow_from_one_another_stop_changes() -> None:
    action = next_step(SPLIT)
    assert isinstance(action, SettleEpoch)
    assert (action.epoch.settled, action.agreed) == (False, None)
    problem = action.epoch.problem or ""
    assert problem.startswith("rank 0 holds decision 2 (aa), rank 1 holds decision 2 (bb), and neither follows")
    assert next_step(replace(SPLIT, epoch=action.epoch)) is None


def test_new_ranks_settle_an_epoch_that_former_ranks_could_not() -> None:
    stuck = EPOCH.model_copy(update={"problem": "rank 0 holds something else than rank 1"})
    action = next_step(replace(SPLIT, epoch=stuck, registered=(registered(0, 20, epoch=1), registered(1, 21, epoch=1))))
    assert isinstance(action, SettleEpoch)
    assert (action.epoch.settled, action.epoch.problem) == (True, None)


def test_an_epoch_is_explained_with_its_meaning_and_what_to_do() -> None:
    stuck = EPOCH.model_copy(update={"problem": "rank 0 holds x\nrank 1 holds y"})
    assert "Nothing needs to be done" in explain(EPOCH)
    assert "rank 0 holds x rank 1 holds y. Training continues, but no change is applied: restart all" in explain(stuck)
    assert explain(EPOCH.model_copy(update={"settled": True})).endswith("and changes are applied as usual")


def _trained_alone(*others: RegisteredWorker, settled: int | None = None) -> Situation:
    """Rank 0 trains in view 1; rank 1 has been in a view 1 too, of other ranks, and holds an earlier decision."""
    here = [_said(0, "bb"), _said(1, "aa")]
    heads = [Head(plan=2, digest="bb", told=2), Head(plan=1, digest="aa", told=1)]
    here = [
        replace(item, member=item.member.model_copy(update={"view": 1, "head": head, "epoch": 0}))
        for item, head in zip(here, heads, strict=True)
    ]
    epoch = None if settled is None else EPOCH.model_copy(update={"settled": True, "view": settled, "number": 0})
    trained = view({"a": {0: 10}, "c": {1: 77}})
    return replace(SPLIT, view=trained, agreed=TWOS, epoch=epoch, registered=(*here, *others), held={})


def test_a_rank_of_another_view_of_the_same_number_proves_that_etcd_holds_another_history() -> None:
    """Its decision alone proves nothing, because the worker could have learned of it long ago. Before the fix, the
    next view included it with the values of its own history."""
    assert isinstance(next_step(_trained_alone()), RaiseEpoch)


def test_a_received_plan_proves_a_loss_only_if_etcd_lacks_it() -> None:
    """Its watch may lag behind that of the registrations."""
    told = replace(_said(0, "aa"), member=_said(0, "aa").member.model_copy(update={"epoch": 0}))
    head = Head(plan=1, digest="aa", told=9)
    told = replace(told, member=told.member.model_copy(update={"head": head}))
    action = next_step(replace(SPLIT, epoch=None, registered=(told,), agreed=agreed(plan=1, digest="aa")))
    assert isinstance(action, RaiseEpoch)
    assert action.told == 9


def test_another_view_proves_nothing_while_its_rank_is_taken_or_once_settled() -> None:
    assert not is_under_way(_trained_alone(registered(1, 77, node="c")))
    assert not is_under_way(_trained_alone(settled=1))


def test_a_run_whose_epochs_are_used_up_continues_and_reports_it_once() -> None:
    last = Epoch(number=MAX_EPOCH, why="", settled=True)
    lost = replace(_said(0, "aa"), member=_said(0, "aa").member.model_copy(update={"epoch": MAX_EPOCH, "view": 3}))
    now = replace(SPLIT, epoch=last, registered=(lost,), agreed=agreed(plan=1, digest="cc"))
    action = next_action(now)
    assert isinstance(action, RaiseEpoch)
    assert action.epoch == Epoch(number=MAX_EPOCH, why=WHY, problem=NO_EPOCH_LEFT)
    assert "the run needs another name. Training continues, but no change is applied" in explain(action.epoch)
    assert not isinstance(next_action(replace(now, epoch=action.epoch)), RaiseEpoch)
    assert epoch_after(MAX_EPOCH - 1, "x") == Epoch(number=MAX_EPOCH, why="x")
