"""When all ranks have arrived at a barrier: the leader's decision, a node's report, and both together under delays."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from instep.protocol import barriers
from instep.protocol.actions import OpenPlan
from instep.protocol.barriers import RELEASES_KEPT, BarrierSituation, BarrierWait, ReleaseBarrier, Released
from instep.protocol.leading import next_action
from instep.protocol.records import Arrivals, Forming, Release, Waiting
from instep.protocol.situation import Situation
from instep.wire.messages import BarrierReleased, EnterBarrier
from instep.worker.checkpoint_inbox import BarrierCalls
from unit.parts import agreed, desired, left, registered, view

THREE = view({"a": {0: 10, 1: 11}, "b": {2: 12}})


def at(name: str, *ranks: int, seen: int = 0, after: int = 0, of: int = 1) -> Arrivals:
    return Arrivals(view=of, waiting={name: Waiting(ranks=ranks, seen=seen, after=after)})


def released(number: int, revision: int, of: int = 1) -> Released:
    return Released(Release(view=of, number=number), revision)


def barrier_situation(**more: Any) -> BarrierSituation:
    return BarrierSituation(**{"view": THREE, "left": {}, "released": {}, "arrivals": {}, **more})


ALL = {"a": at("x", 0, 1), "b": at("x", 2)}


def test_all_ranks_pass_when_all_have_arrived() -> None:
    assert barriers.next_release(barrier_situation(arrivals=ALL)) == ReleaseBarrier("x", Release(view=1, number=1), 0)


@pytest.mark.parametrize(
    "arrivals",
    [
        {},
        {"a": at("x", 0, 1)},
        {"a": at("x", 0), "b": at("x", 2)},
        {"a": at("x", 0, 1), "b": at("y", 2)},
        {"a": at("x", 0, 1), "b": at("x", 2, of=2)},
        {"a": at("x", 0, 1), "b": at("x", 2, seen=4)},
        {"a": at("x", 0, 1, 2)},
        {"a": at("x", 0, 1), "elsewhere": at("x", 2)},
    ],
    ids=[
        *("no arrival", "a node is missing", "a rank is missing", "another barrier", "another view", "another round"),
        *("said by another node", "said by a node of another view"),
    ],
)
def test_no_rank_passes_before_all_have_arrived(arrivals: dict[str, Arrivals]) -> None:
    assert barriers.next_release(barrier_situation(arrivals=arrivals)) is None


def test_ranks_that_have_left_are_not_required_but_an_empty_barrier_is_not_released() -> None:
    gone = {"b": left(2)}
    assert barriers.next_release(barrier_situation(arrivals={"a": at("x", 0, 1)}, left=gone)) is not None
    all_left = {"a": left(0, 1), "b": left(2)}
    assert barriers.next_release(barrier_situation(arrivals={"a": at("x", 0, 1)}, left=all_left)) is None


def test_numbers_rise_over_all_barriers_even_if_one_was_deleted() -> None:
    last_releases = {"x": released(4, 40), "y": released(7, 70)}
    arrivals = {"a": at("x", 0, 1, seen=40, after=9), "b": at("x", 2, seen=40, after=7)}
    found = barriers.next_release(barrier_situation(arrivals=arrivals, released=last_releases))
    assert found == ReleaseBarrier("x", Release(view=1, number=10), 40)


def test_only_the_newest_releases_are_kept() -> None:
    last_releases = {f"n{number}": released(number, number) for number in range(1, 31)}
    found = barriers.next_release(barrier_situation(arrivals=ALL, released=last_releases))
    assert found is not None
    assert len(last_releases) + 1 - len(found.outdated) == RELEASES_KEPT
    assert set(found.outdated) == {f"n{number}" for number in range(1, 12)}


def test_missing_ranks_are_named_with_the_barrier_at_which_they_wait() -> None:
    found = barriers.missing_ranks(barrier_situation(arrivals={"a": at("x", 0), "b": at("y", 2)}), "x")
    assert (found.ranks, found.elsewhere) == ((1, 2), {"y": (2,)})


@pytest.mark.parametrize(
    ("call", "last_release", "is_free"),
    [
        (BarrierWait("x", view=1, after=0), None, False),
        (BarrierWait("x", view=1, after=0), released(1, 9), True),
        (BarrierWait("x", view=1, after=1), released(1, 9), False),
        (BarrierWait("x", view=1, after=1), released(2, 9, of=2), True),
        (BarrierWait("x", view=2, after=0), released(1, 9, of=1), False),
    ],
    ids=["none", "the next one", "the last one", "of a later view that includes us", "of an earlier view"],
)
def test_a_release_frees_the_ranks_that_had_arrived(
    call: BarrierWait, last_release: Released | None, is_free: bool
) -> None:
    assert call.is_freed_by(last_release) is is_free


@pytest.mark.parametrize(
    ("wanted", "written", "all_wait", "overdue", "is_due"),
    [
        (at("x", 0), None, False, False, False),
        (at("x", 0), None, False, True, True),
        (at("x", 0, 1), None, True, False, True),
        (at("x", 0, 1), at("x", 0, 1), True, True, False),
        (at("x", 1), at("x", 0, 1), False, False, True),
        (None, at("x", 0), False, False, True),
        (at("x", 0, of=2), at("x", 0), False, False, True),
    ],
    ids=["not with each rank", "late", "with the last", "once", "one gave up", "the only one gave up", "a new view"],
)
def test_a_node_reports_when_all_its_ranks_have_arrived(
    wanted: Arrivals | None, written: Arrivals | None, all_wait: bool, overdue: bool, is_due: bool
) -> None:
    assert barriers.is_due(wanted, written, all_wait=all_wait, overdue=overdue) is is_due


def test_a_released_barrier_is_removed_from_the_report() -> None:
    two = Arrivals(view=1, waiting={"x": Waiting(ranks=(0,)), "y": Waiting(ranks=(1,))})
    assert barriers.without(two, "x") == at("y", 1)
    assert barriers.without(at("x", 0), "x") is None
    assert barriers.without(None, "x") is None


def test_the_leader_releases_barriers_before_it_opens_plans() -> None:
    all_ranks = tuple(registered(rank, 10 + rank, node="aab"[rank], world_size=3) for rank in range(3))
    now = Situation(
        view=THREE,
        agreed=agreed(),
        registered=all_ranks,
        arrivals=ALL,
        desired=desired(lr=("0.5", 7)),
    )
    assert isinstance(next_action(now), ReleaseBarrier)
    assert not isinstance(next_action(Situation(view=THREE, arrivals={})), ReleaseBarrier | OpenPlan)


def test_a_rank_that_died_at_a_barrier_is_replaced_before_any_rank_passes() -> None:
    """Its node is lost, and nothing has withdrawn its report."""
    living = tuple(registered(rank, 10 + rank, node="a", world_size=3) for rank in range(2))
    told = Forming(world_size=3, missing="2")
    now = Situation(view=THREE, agreed=agreed(), registered=living, arrivals=ALL, forming=told)
    assert next_action(now) is None
    ended = replace(now, arrivals={"a": at("x", 0, 1)}, left={"b": left(2)})
    assert isinstance(next_action(ended), ReleaseBarrier)


# -- all of it together -----------------------------------------------------------------------------------------------


@dataclass
class Rank:
    calls: BarrierCalls = field(default_factory=BarrierCalls)
    came: int = 0
    passed: int = 0
    message: EnterBarrier | None = None


class World:
    """Three ranks on two nodes, etcd, and a leader whose view of the arrivals may be outdated. Anything may be late."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.nodes = {"a": [0, 1], "b": [2]}
        self.ranks = {rank: Rank() for rank in range(3)}
        self.known: dict[str, dict[int, BarrierWait]] = {"a": {}, "b": {}}
        """What each agent has heard of its ranks; a new one has heard nothing."""
        self.arrivals: dict[str, Arrivals] = {}
        self.looks: list[dict[str, Arrivals]] = [{}]
        self.released: dict[str, Released] = {}
        self.shown: dict[str, dict[str, Released]] = {"a": {}, "b": {}}
        self.revision = 0

    def step(self) -> None:
        node = self.random.choice(list(self.nodes))
        rank = self.random.choice(self.nodes[node])
        moves = [self.come, self.hear, self.say, self.say, self.see, self.lead, self.lead]
        if self.random.random() < 0.05:
            self.known[node] = {}  # the agent is killed and loses its memory
        self.random.choice(moves)(node, rank)

    def come(self, node: str, number: int) -> None:
        rank = self.ranks[number]
        if rank.calls.name is None:
            rank.came += 1
            rank.message = rank.calls.enter("xyx"[rank.came % 3], 1)

    def hear(self, node: str, number: int) -> None:
        """The agent receives a call, possibly again."""
        rank = self.ranks[number]
        if rank.calls.name is not None and rank.message is not None:
            self.known[node][number] = BarrierWait(rank.message.name, rank.message.view, rank.message.after)
            self.tell(node)

    def see(self, node: str, number: int) -> None:
        self.shown[node] = dict(self.released)
        self.tell(node)

    def tell(self, node: str) -> None:
        """Ranks that the releases seen by the agent free, before it reports that they wait."""
        for rank, call in list(self.known[node].items()):
            last_release = self.shown[node].get(call.name)
            if last_release is not None and call.is_freed_by(last_release):
                del self.known[node][rank]
                told = BarrierReleased(call.name, last_release.record.number)
                before = self.ranks[rank].calls.name
                self.ranks[rank].calls.on_release(told)
                if before is not None and self.ranks[rank].calls.name is None:
                    self.pass_on(rank)

    def say(self, node: str, number: int) -> None:
        """The agent's knowledge, as far as it has seen releases."""
        waiting: dict[str, Waiting] = {}
        for rank, call in sorted(self.known[node].items()):
            last_release = self.shown[node].get(call.name)
            seen = last_release.revision if last_release is not None else 0
            ranks = (*(waiting[call.name].ranks if call.name in waiting else ()), rank)
            waiting[call.name] = Waiting(ranks=ranks, seen=seen, after=call.after)
        self.arrivals[node] = Arrivals(view=1, waiting=waiting)
        self.looks.append(dict(self.arrivals))

    def lead(self, node: str, number: int) -> None:
        look = self.random.choice(self.looks[-3:])
        action = barriers.next_release(barrier_situation(arrivals=look, released=self.released))
        if action is not None:
            self.revision += 1
            self.released[action.name] = Released(action.release, self.revision)

    def pass_on(self, number: int) -> None:
        rank = self.ranks[number]
        rank.passed += 1
        assert rank.passed == rank.came
        late = [other for other, item in self.ranks.items() if item.came < rank.passed]
        assert not late, f"rank {number} passed its barrier {rank.passed} before {late} had come"


@pytest.mark.parametrize("seed", range(40))
def test_with_any_delays_no_rank_passes_early_and_all_pass_in_the_end(seed: int) -> None:
    world = World(seed)
    for _ in range(1500):
        world.step()
    assert min(rank.passed for rank in world.ranks.values()) > 3
