"""Which workers form a view."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.protocol.membership import (
    RegisteredWorker,
    active_nodes,
    groups,
    last_step_left,
    mismatched,
    missing_ranks,
    mixed_versions,
    next_group,
    nodes_of,
    staying,
    without_stale,
)
from instep.protocol.records import Elastic, WorkerId
from unit.parts import incarnation, left, registered, view

TWO = view({"a": {0: 10}, "b": {1: 11}})
"""Rank 0 on node a, rank 1 on node b."""

CROWD = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from(["d1", "d2"])), min_size=0, max_size=12
).map(
    lambda found: [
        registered(rank, at, world_size=size, digest=digest) for at, (rank, size, digest) in enumerate(found, 1)
    ]
)


def test_a_view_forms_when_every_rank_is_there() -> None:
    assert next_group(None, [registered(0, 10)]) is None
    group = next_group(None, [registered(0, 10), registered(1, 11)])
    assert group is not None
    assert group.incarnations() == {0: incarnation(10), 1: incarnation(11)}


def test_a_view_is_kept_while_its_workers_are_the_latest() -> None:
    assert next_group(TWO, [registered(0, 10), registered(1, 11)]) is None


def changed(item: RegisteredWorker, **changes: object) -> RegisteredWorker:
    return replace(item, member=item.member.model_copy(update=changes))


def started_by(run_id: str, restarts: int = 0) -> dict[str, object]:
    return {"elastic": Elastic(restarts=restarts, max_restarts=3, run_id=run_id)}


def test_while_a_view_forms_a_later_registration_of_a_rank_replaces_the_earlier_one() -> None:
    group = next_group(None, [registered(0, 10), registered(1, 11), registered(1, 12)])
    assert group is not None
    assert group.incarnations()[1] == incarnation(12)


def test_a_rank_that_trains_is_not_evicted_by_a_second_start_of_the_same_script() -> None:
    twice = [registered(0, 10), registered(1, 11), registered(1, 12, node="c")]
    assert next_group(TWO, twice) is None
    reasons = mismatched(TWO, twice)
    assert reasons.keys() == {WorkerId(1, incarnation(12))}
    assert "process 1012 on host-c cannot join as that rank" in reasons[WorkerId(1, incarnation(12))]
    assert "is process 1011 on host-a" in reasons[WorkerId(1, incarnation(12))]


def test_a_training_rank_is_evicted_by_a_join_with_take_over() -> None:
    told = changed(registered(1, 12), take_over=True)
    group = next_group(TWO, [registered(0, 10), registered(1, 11), told])
    assert group is not None
    assert group.incarnations()[1] == incarnation(12)
    assert mismatched(TWO, [registered(0, 10), registered(1, 11), told]) == {}


@pytest.mark.parametrize(
    ("former", "later", "evicts"), [("job-7", "job-7", True), ("job-7", "job-8", False), ("", "", False)]
)
def test_a_new_round_of_a_torchrun_job_evicts_workers_of_the_round_before(
    former: str, later: str, evicts: bool
) -> None:
    """Workers of a torchrun that was killed survive, and the rest of the job forms a round without them. The restart
    count is no criterion, because it also rises if a second torchrun starts a script that was refused."""
    trains = changed(registered(1, 11), **started_by(former))
    group = next_group(TWO, [registered(0, 10), trains, changed(registered(1, 12), **started_by(later, restarts=1))])
    assert (group is not None) == evicts


def test_a_rank_whose_process_or_node_is_gone_is_replaced_by_any_process() -> None:
    group = next_group(TWO, [registered(0, 10), registered(1, 12, node="c")])
    assert group is not None
    assert group.incarnations()[1] == incarnation(12)


def test_a_member_that_registers_on_a_new_lease_keeps_its_rank_over_a_newcomer() -> None:
    assert next_group(TWO, [registered(0, 10), registered(1, 12), registered(1, 20, number=11)]) is None


def test_a_rank_outside_the_world_size_does_not_stop_the_leader() -> None:
    assert mismatched(TWO, [registered(0, 10), registered(1, 11), registered(7, 12)]) == {}


def test_the_order_of_the_listing_does_not_matter() -> None:
    arrived = [registered(0, 10), registered(1, 12), registered(1, 11)]
    found = {str(sorted(next_group(None, order).incarnations().items())) for order in (arrived, arrived[::-1])}  # type: ignore[union-attr]
    assert len(found) == 1
    assert incarnation(12) in found.pop()


def test_a_worker_that_died_leaves_a_view_that_lacks_it() -> None:
    assert next_group(TWO, [registered(0, 10)]) is None
    assert missing_ranks(TWO, [registered(0, 10)], {}) == (1,)
    assert groups([registered(0, 10)])[0].missing() == (1,)


def test_a_rank_that_left_is_not_missing() -> None:
    assert missing_ranks(TWO, [registered(0, 10)], {"b": left(1)}) == ()
    assert missing_ranks(TWO, [registered(0, 10)], {"b": left(1, view=7)}) == (1,)


def test_workers_that_disagree_do_not_block_the_others() -> None:
    crowd = [registered(0, 10), registered(1, 11), registered(0, 12, digest="other"), registered(3, 13, world_size=8)]
    group = next_group(None, crowd)
    assert group is not None
    assert group.incarnations() == {0: incarnation(10), 1: incarnation(11)}


def test_a_rank_outside_its_own_world_size_is_in_no_group() -> None:
    assert groups([registered(2, 10, world_size=2)]) == ()


def test_the_complete_group_with_the_newest_arrival_forms_the_view() -> None:
    crowd = [registered(0, 12), registered(1, 13), *(registered(rank, 20 + rank, world_size=3) for rank in range(3))]
    group = next_group(TWO, crowd)
    assert group is not None
    assert group.world_size == 3


def test_a_group_of_another_size_does_not_replace_a_view_with_a_living_worker() -> None:
    """A script that is started without torchrun under the name of a training run is complete with one rank."""
    assert next_group(TWO, [registered(0, 10), registered(1, 11), registered(0, 20, world_size=1)]) is None


def test_a_replaced_worker_cannot_take_its_rank_back() -> None:
    ghost = registered(0, 5)
    ghost = RegisteredWorker(ghost.member.model_copy(update={"view": 1}), 99)
    later = TWO.model_copy(update={"number": 2})
    kept = without_stale(later, [registered(0, 10), registered(1, 11), ghost])
    assert {item.member.incarnation for item in kept} == {incarnation(10), incarnation(11)}


def test_a_worker_from_another_view_of_this_number_causes_the_next_view() -> None:
    """etcd was emptied, and the run restarted without this worker, which learns that only from a view with a higher
    number."""
    other = registered(0, 5)
    other = RegisteredWorker(other.member.model_copy(update={"view": TWO.number}), 5)
    items = without_stale(TWO, [registered(0, 10), registered(1, 11), other])
    assert len(items) == 3
    group = next_group(TWO, items)
    assert group is not None
    assert group.incarnations() == TWO.incarnations()
    assert next_group(TWO.model_copy(update={"number": 2}), items) is None


def test_workers_that_have_trained_do_not_start_fresh_even_if_the_view_was_deleted() -> None:
    trained = RegisteredWorker(registered(0, 10).member.model_copy(update={"view": 3}), 1)
    group = next_group(None, [trained, registered(1, 11)])
    assert group is not None
    assert staying(None, group, 0)


# -- mismatched ----------------------------------------------------------------------------------------------------


def test_a_worker_that_disagrees_with_a_living_view_is_refused_and_the_view_is_not() -> None:
    crowd = [registered(0, 10), registered(1, 11), registered(0, 12, world_size=4)]
    reasons = mismatched(TWO, crowd)
    assert reasons.keys() == {WorkerId(0, incarnation(12))}
    assert "says the world size is 4, the others say 2" in reasons[WorkerId(0, incarnation(12))]


def test_other_hyperparameters_are_a_disagreement_too() -> None:
    reasons = mismatched(TWO, [registered(0, 10), registered(1, 11), registered(0, 12, digest="other")])
    assert "other hyperparameters" in reasons[WorkerId(0, incarnation(12))]


def test_without_a_view_the_largest_group_counts_and_of_equals_the_older() -> None:
    equals = [registered(0, 10, world_size=4), registered(0, 11, world_size=3)]
    assert mismatched(None, equals).keys() == {WorkerId(0, incarnation(11))}
    larger = [*equals, registered(1, 12, world_size=3)]
    assert mismatched(None, larger).keys() == {WorkerId(0, incarnation(10))}


def test_a_view_whose_workers_are_all_gone_does_not_count() -> None:
    crowd = [registered(rank, 20 + rank, world_size=3) for rank in range(3)]
    assert mismatched(TWO, crowd) == {}


def test_without_other_workers_no_worker_is_mismatched() -> None:
    assert mismatched(None, []) == {}
    assert mismatched(TWO, []) == {}


# -- views ---------------------------------------------------------------------------------------------------------


def test_a_view_is_fresh_only_if_no_worker_stays() -> None:
    goes_on = next_group(TWO, [registered(0, 10), registered(1, 12)])
    restarted = next_group(TWO, [registered(0, 20), registered(1, 21)])
    assert goes_on is not None
    assert restarted is not None
    assert not staying(None, goes_on, 0)
    assert staying(TWO, goes_on, TWO.number)
    assert not staying(TWO, restarted, TWO.number)


def test_a_view_names_nodes_with_their_ranks_rising() -> None:
    crowd = [
        registered(3, 10, world_size=4),
        registered(1, 11, world_size=4),
        registered(0, 12, world_size=4, node="b"),
        registered(2, 13, world_size=4, node="b"),
    ]
    (group,) = groups(crowd)
    nodes = nodes_of(group)
    assert {node: members.ranks for node, members in nodes.items()} == {"b": (0, 2), "a": (1, 3)}
    assert nodes["a"].incarnations == (incarnation(11), incarnation(10))


def test_a_node_is_active_until_all_its_ranks_have_left_this_view() -> None:
    pair = view({"a": {0: 10, 1: 11}, "b": {2: 12}})
    assert active_nodes(pair, {}) == {"a", "b"}
    assert active_nodes(pair, {"a": left(0)}) == {"a", "b"}
    assert active_nodes(pair, {"a": left(0, 1)}) == {"b"}
    assert active_nodes(pair, {"a": left(0, 1, view=2)}) == {"a", "b"}


def test_the_last_step_left_is_the_highest_of_this_view() -> None:
    records = {"a": left(0, last_step=7), "b": left(1, last_step=9), "elsewhere": left(5, last_step=99)}
    assert last_step_left(TWO, {}) == -1
    assert last_step_left(TWO, records) == 9
    assert last_step_left(TWO, {**records, "b": left(1, view=3, last_step=9)}) == 7


@given(CROWD, st.randoms(use_true_random=False))
def test_each_worker_of_a_view_is_the_latest_of_its_rank(crowd: list[RegisteredWorker], chance: random.Random) -> None:
    group = next_group(None, crowd)
    shuffled = list(crowd)
    chance.shuffle(shuffled)
    assert next_group(None, shuffled) == group
    if group is None:
        return
    assert sorted(group.by_rank) == list(range(group.world_size))
    for rank, chosen in group.by_rank.items():
        rivals = [
            item
            for item in crowd
            if (item.member.rank, item.member.world_size, item.member.schema_digest)
            == (rank, group.world_size, group.schema_digest)
        ]
        assert chosen == max(rivals, key=lambda item: item.create_revision)


@given(CROWD)
def test_at_least_one_worker_is_never_mismatched(crowd: list[RegisteredWorker]) -> None:
    usable = {item.member.worker for item in crowd if item.member.rank < item.member.world_size}
    assert not usable or usable - mismatched(None, crowd).keys()


def test_versions_are_named_only_where_they_differ() -> None:
    same = [registered(0, 10, version="1.2"), registered(1, 11, version="1.2")]
    assert _mixed(same) == ()
    assert _mixed([same[0], registered(1, 11, version="1.3")]) == ("1.2", "1.3")
    assert _mixed([same[0], registered(1, 11)]) == ("1.2", "unknown")


def _mixed(items: list[RegisteredWorker]) -> tuple[str, ...]:
    group = next_group(None, items)
    assert group is not None
    return mixed_versions(group)
