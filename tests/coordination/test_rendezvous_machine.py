"""The promises of the rendezvous hold for its production code despite crashes, partitions and delays."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis.stateful import run_state_machine_as_test
from model_client import ModelClient
from rendezvous_machine import HISTORY_PROFILE, PROFILE, HistoryRendezvousMachine, RendezvousMachine
from rendezvous_peer import TTL_S
from rendezvous_world import World

from instep.etcd import Client
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Closed, Round, Seat


def test_rounds_consist_of_the_nodes_that_ask_and_no_worker_is_restarted_needlessly() -> None:
    run_state_machine_as_test(RendezvousMachine, settings=PROFILE)


def test_the_coordinator_is_idle_while_a_finished_last_call_waits_for_a_lease_to_expire() -> None:
    """The virtual clock detects a loop that is never idle."""
    playing = RendezvousMachine()
    playing.begin_with((1, 4), 3)
    with playing.stack:
        playing.world.peers[2].crash()
        for peer in playing.world.alive():
            peer.wish = "fail"
        playing.come_to_rest()


def test_a_node_that_asks_again_just_after_it_was_seated_gets_another_seat() -> None:
    """Its pending report about the first seat does not overwrite the second request."""

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


def test_all_available_nodes_run_together_after_the_history_of_etcd_goes_back() -> None:
    run_state_machine_as_test(HistoryRendezvousMachine, settings=HISTORY_PROFILE)


@pytest.mark.parametrize("back_to", ["nothing", "the first node's registration", "the round before", "a moment ago"])
@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.parametrize("junk", [0, 300], ids=["", "and grown past the old revision"])
def test_no_worker_is_restarted_when_etcd_shows_an_older_history(back_to: str, spares: int, junk: int) -> None:
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


def test_a_node_that_starts_after_a_wipe_before_the_others_have_noticed_joins_them() -> None:
    """It cannot know of them: it begins alone, and asks again when they have written their round back."""
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


def test_another_cluster_in_which_a_run_of_this_name_has_ended_ends_no_node() -> None:
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
