"""Two ranks may have drawn the same incarnation; they must not be confused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.agent.stall import WorkerProgress, nominate
from instep.agent.workers import LocalWorker, Workers
from instep.names import INCARNATION_LENGTH
from instep.protocol import attempts, membership
from instep.protocol.actions import FormView, RefuseWorkers
from instep.protocol.attempts import FailureSituation
from instep.protocol.leading import next_action
from instep.protocol.membership import RegisteredWorker
from instep.protocol.records import Agreed, Attempts, Directive, Leader, Left, Refused, WorkerId
from instep.protocol.schema import Schema
from instep.protocol.situation import Situation
from instep.wire.messages import FromAgent
from instep.worker.join import _incarnation
from unit.parts import DIGEST, SCHEMA, agreed, desired, incarnation, registered, view

TWO = view({"a": {0: 10}, "b": {1: 11}})
SWAPPED = (registered(0, 21, number=11), registered(1, 20, number=10, node="b"))
"""Another start: rank 0 has drawn what rank 1 had, and the other way round."""


def trained(item: RegisteredWorker, view: int = 1) -> RegisteredWorker:
    return replace(item, member=item.member.model_copy(update={"view": view}))


def test_an_incarnation_has_64_random_bits_in_the_length_that_views_join() -> None:
    drawn = {_incarnation() for _ in range(10_000)}
    assert len(drawn) == 10_000
    assert {len(text) for text in drawn} == {INCARNATION_LENGTH}
    assert 62**INCARNATION_LENGTH > 2**64


# -- the leader ----------------------------------------------------------------------------------------------------


def test_a_start_is_fresh_even_if_a_rank_drew_the_incarnation_of_another() -> None:
    group = membership.next_group(TWO, SWAPPED)
    assert group is not None
    assert membership.staying(TWO, group, TWO.number) == ()


def test_a_stopped_run_that_starts_again_takes_the_desired_values_and_trains() -> None:
    """It started with the old values and ended at once."""
    before = Agreed(plan=3, view=1, values={"lr": 0.5}, origin=1, directive=Directive(ends_at=10, reason="stopped"))
    action = next_action(
        Situation(
            view=TWO,
            agreed=before,
            registered=SWAPPED,
            left={node: Left(view=1, ranks=ranks) for node, ranks in (("a", (0,)), ("b", (1,)))},
            desired=desired(lr=("0.2", 9)),
            schemas={DIGEST: SCHEMA.encode()},
        )
    )
    assert isinstance(action, FormView)
    assert action.view.fresh
    assert action.view.start.values["lr"] == 0.2
    assert action.view.start.directive.ends_at is None


def test_a_dead_rank_is_missing_even_if_another_has_its_incarnation() -> None:
    twins = view({"a": {0: 10, 1: 10}})
    assert membership.missing_ranks(twins, [registered(0, 10)], {}) == (1,)


def test_a_worker_of_an_older_view_stays_out_even_if_another_rank_has_its_incarnation() -> None:
    ghost = trained(registered(1, 30, number=10))
    assert membership.without_stale(TWO.model_copy(update={"number": 2}), [ghost]) == ()


def test_a_view_without_living_workers_does_not_continue_by_incarnation() -> None:
    larger = tuple(registered(rank, 20 + rank, number=11 - rank, world_size=3) for rank in range(3))
    group = membership.next_group(TWO, larger)
    assert group is not None
    assert group.world_size == 3
    assert membership.mismatched(TWO, larger) == {}


def test_only_the_mismatched_worker_is_refused_even_if_a_member_has_its_incarnation() -> None:
    stranger = registered(2, 30, number=10, world_size=4)
    crowd = (registered(0, 10), registered(1, 11, node="b"), stranger)
    assert membership.mismatched(TWO, crowd).keys() == {WorkerId(2, incarnation(10))}
    lasting = frozenset({stranger.member.worker})
    action = next_action(
        Situation(
            view=TWO, agreed=agreed(), registered=crowd, long_mismatched=lasting, schemas={DIGEST: SCHEMA.encode()}
        )
    )
    assert isinstance(action, RefuseWorkers)
    assert [item.worker for item in action.refused] == [stranger.member.worker]


def test_newcomers_are_refused_even_if_a_member_has_their_incarnation() -> None:
    allowed = [
        replace(item, member=item.member.model_copy(update={"max_restarts": 0}))
        for item in (registered(0, 10), registered(1, 30, number=10, node="b"))
    ]
    (refused,) = attempts.rejected_joins(TWO, allowed, Attempts(view=1, counts={"x": 1}), "gpt-a")
    assert refused.workers() == (WorkerId(1, incarnation(10)),)


def test_a_lost_rank_is_counted_even_if_another_has_its_incarnation() -> None:
    group = membership.next_group(TWO, (registered(0, 10), registered(1, 30, number=10, node="b")))
    past = FailureSituation(view=TWO, left={}, stopping=False, registered=(), reports=(), attempts=Attempts())
    assert attempts.counted(past, group).total == 1


def test_a_member_of_another_version_is_refused_and_delays_no_other() -> None:
    """Before protocol 3 an incarnation had five characters."""
    older = replace(SWAPPED[1], member=SWAPPED[1].member.model_copy(update={"incarnation": "abcde"}))
    newer = replace(SWAPPED[1], member=SWAPPED[1].member.model_copy(update={"protocol": 99}))
    for other in (older, newer):
        assert membership.next_group(None, (SWAPPED[0], other)) is None
        reasons = membership.mismatched(None, (SWAPPED[0], other))
        assert "another version of Instep" in reasons[other.member.worker]
        assert membership.next_group(None, (*SWAPPED, other)) is not None


@given(st.permutations(range(6)))
def test_no_order_of_the_old_incarnations_makes_a_full_restart_less_fresh(order: list[int]) -> None:
    names = dict(enumerate(order))
    before = view({"a": {rank: rank for rank in names}})
    again = tuple(registered(rank, 50 + rank, number=name, world_size=6) for rank, name in names.items())
    group = membership.next_group(before, again)
    same = {rank for rank, name in names.items() if rank == name}
    assert (group is None) == (len(same) == 6)
    assert group is None or (membership.staying(before, group, before.number) == ()) == (not same)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_a_refusal_names_each_of_many_by_rank_and_incarnation() -> None:
    crowd = [WorkerId(rank, incarnation(rank % 2)) for rank in (9, 3, 4, 0)]
    record = Refused.of(crowd, "no")
    assert record.workers() == tuple(sorted(crowd))
    assert Refused.decode(record.encode()) == record


@pytest.mark.parametrize("also", [["1", ""], ["", incarnation(1)], ["x", incarnation(1)], ["1-2", incarnation(1)]])
def test_a_refusal_whose_names_do_not_fit_its_ranks_is_none(also: list[str]) -> None:
    record = Refused(incarnation=incarnation(1), rank=0, reason="no")
    text = record.encode().replace('["",""]', str(also).replace("'", '"'))
    assert str(also[1]) in text
    assert Refused.decode_or_none(text) is None


# -- one node ------------------------------------------------------------------------------------------------------


class Wire:
    """A connection, as far as these tests use it."""

    def __init__(self) -> None:
        self.said: list[FromAgent] = []
        self.words = None

    def send(self, message: FromAgent) -> None:
        self.said.append(message)

    def close(self) -> None: ...


def local(rank: int) -> LocalWorker:
    return LocalWorker(registered(rank, 10).member, Schema(None), cast(Any, Wire()))


def test_an_agent_serves_both_of_its_workers_that_drew_the_same_incarnation() -> None:
    workers = Workers()
    first, second = local(0), local(1)
    workers.add(first)
    workers.add(second)
    assert list(workers) == [first, second]
    twins = view({"a": {0: 10, 1: 10}})
    assert workers.in_view(twins, "a") == {0: first, 1: second}
    workers.notify_leader(Leader(node="a", rank=1, incarnation=incarnation(10), candidate="c", token=7))
    assert [item.connection.said[-1].token for item in (first, second)] == [0, 7]  # type: ignore[union-attr]
    workers.remove(first)
    assert list(workers) == [second]


def test_a_candidate_names_one_of_two_that_drew_the_same_incarnation() -> None:
    both = [
        WorkerProgress(rank=rank, incarnation="same", joined=True, trains=True, at=at, step_time_s=0.1)
        for rank, at in ((0, 0.0), (1, 1000.0))
    ]
    named = nominate(None, both, 1000.0, timeout_s=60, leads=False, rivals=False)
    assert named is not None
    assert named.worker == WorkerId(1, "same")
