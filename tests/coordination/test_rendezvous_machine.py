"""The promises of the rendezvous hold for the nodes' own code, whatever dies, is cut off or delayed."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from model_client import ModelClient
from rendezvous_machine import DEEPER, PROFILE, HistoryRendezvousMachine, RendezvousMachine
from rendezvous_peer import TTL_S
from rendezvous_world import World

from instep.etcd import Client
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Closed, Round, Seat


def test_rounds_are_formed_of_those_who_ask_and_nobody_is_restarted_in_vain() -> None:
    run_state_machine_as_test(RendezvousMachine, settings=PROFILE)


@pytest.mark.long
def test_so_they_are_after_long_chains_of_events() -> None:
    run_state_machine_as_test(RendezvousMachine, settings=DEEPER)


def test_the_coordinator_rests_while_a_last_call_that_is_over_waits_for_a_lease_to_end() -> None:
    """A loop on which somebody never rests is noticed by the virtual clock."""
    playing = RendezvousMachine()
    playing.begin_with((1, 4), 3)
    with playing.stack:
        playing.world.peers[2].crash()
        for peer in playing.world.alive():
            peer.wish = "fail"
        playing.come_to_rest()


def test_a_node_that_asks_again_in_the_moment_in_which_it_was_seated_is_heard() -> None:
    """What it had still to say of the first seat does not come after the second request."""

    async def two_rounds(world: World) -> list[int]:
        client = cast(Client, ModelClient(world.store, world.keys.root))
        times: dict[str, Any] = {"ttl_s": TTL_S, "last_call_s": 1.0, "clock": world.loop.time}
        node = RendezvousNode(client, world.keys, world.limits, host="h", pid=1, **times)
        store = Address(host="h", port=1)
        async with node:
            return [(await node.seat(store, cause="membership", timeout_s=20.0)).number for _ in range(2)]

    playing = RendezvousMachine()
    playing.begin_with((1, 2), 0)
    with playing.stack:
        rounds = playing.world.loop.create_task(two_rounds(playing.world))
        playing.world.loop.advance(60.0)
        assert rounds.result() == [1, 2]


HISTORY = settings(PROFILE, max_examples=PROFILE.max_examples // 2)


def test_all_who_can_take_part_run_together_though_etcds_history_goes_back() -> None:
    run_state_machine_as_test(HistoryRendezvousMachine, settings=HISTORY)


@pytest.mark.parametrize("back_to", ["nothing", "the first node's registration", "the round before", "a moment ago"])
@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.parametrize("junk", [0, 300], ids=["", "and grown past the old revision"])
def test_nobody_is_restarted_where_etcd_shows_an_older_history(back_to: str, spares: int, junk: int) -> None:
    playing = RendezvousMachine()
    playing.begin_with((1, 2), 2)
    with playing.stack:
        world = playing.world
        revisions = {"nothing": 1, "the first node's registration": first_registration(world)}
        revisions["the round before"] = world.store.revision
        world.peers[0].wish = "fail"
        world.loop.advance(10.0)
        for _ in range(spares):
            world.start()
        world.loop.advance(10.0)
        revisions["a moment ago"] = world.store.revision
        train = [peer for peer in world.peers if peer.running]
        formed = [peer.content_in for peer in train]
        world.go_back(revisions[back_to])
        for number in range(junk):
            world.store.put(f"/junk/{number}", "x")
        world.loop.advance(60.0)
        assert len(train) == 2
        assert [(peer.running, peer.content_in) for peer in train] == [(True, current) for current in formed]
        train[1].crash()
        world.loop.advance(TTL_S + 30.0)
        playing.come_to_rest()


def test_who_comes_after_a_wipe_before_the_others_have_noticed_meets_them() -> None:
    """Nobody could tell it of them: it begins alone, and has to ask again once they have written their round back."""
    playing = RendezvousMachine()
    playing.begin_with((1, 2), 1)
    with playing.stack:
        world = playing.world
        world.cut_off(world.peers[0], 12.0)
        world.go_back(1)
        world.start()
        world.loop.advance(8.0)
        assert [peer.running for peer in world.peers] == [True, True]
        world.loop.advance(30.0)
        first, second = (peer.content_in for peer in world.peers)
        assert first is not None
        assert first == second
        assert len(first.seats) == 2
        playing.come_to_rest()


def test_another_cluster_that_knows_a_run_of_this_name_as_ended_ends_nobody() -> None:
    playing = RendezvousMachine()
    playing.begin_with((1, 2), 3)
    with playing.stack:
        world = playing.world
        train = [peer for peer in world.peers if peer.running]
        former = Round(epoch=3, number=40, limits=world.limits, seats=(Seat(node="f", host="f", pid=1),))
        world.go_back(1)
        world.store.put(world.keys.round, former.encode())
        world.store.put(world.keys.closed, Closed(epoch=3, by="f").encode())
        world.loop.advance(40.0)
        assert [peer.running for peer in train] == [True, True]
        written = playing._round()
        assert written is not None
        assert (written.epoch, written.number, len(written.seats)) == (4, 41, 2)
        train[0].crash()
        world.loop.advance(TTL_S + 30.0)
        playing.come_to_rest()


def first_registration(world: World) -> int:
    return min(item.create_revision for item in world.store.range(world.keys.nodes).kvs)
