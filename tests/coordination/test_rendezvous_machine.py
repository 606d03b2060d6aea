"""The promises of the rendezvous hold for the nodes' own code, whatever dies, is cut off or delayed."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis.stateful import run_state_machine_as_test
from model_client import ModelClient
from rendezvous_machine import DEEPER, PROFILE, RendezvousMachine
from rendezvous_peer import TTL_S
from rendezvous_world import World

from instep.coordination.rendezvous.node import Node
from instep.coordination.rendezvous.records import Address
from instep.etcd import Client


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


def test_who_is_in_another_round_of_the_same_number_meets_the_others_again() -> None:
    """Deleted by hand just after it was formed, a round is forgotten and its number given again."""
    playing = RendezvousMachine()
    playing.begin_with((1, 4), 3)
    with playing.stack:
        world = playing.world
        formed = world.judge.formed[1]
        assert len(formed.seats) == 3
        world.judge.acting = None
        world.store.put(world.keys.round, formed.model_copy(update={"seats": formed.seats[:2]}).encode())
        world.loop.advance(5.0)
        assert [len(world.judge.formed[2].seats), *(peer.running for peer in world.peers)] == [3, True, True, True]


def test_a_node_that_asks_again_in_the_moment_in_which_it_was_seated_is_heard() -> None:
    """What it had still to say of the first seat does not come after the second request."""

    async def two_rounds(world: World) -> list[int]:
        client = cast(Client, ModelClient(world.store, world.keys.root))
        times: dict[str, Any] = {"ttl_s": TTL_S, "last_call_s": 1.0, "clock": world.loop.time}
        node = Node(client, world.keys, world.limits, host="h", pid=1, **times)
        store = Address(host="h", port=1)
        async with node:
            return [(await node.seat(store, cause="membership", timeout_s=20.0)).number for _ in range(2)]

    playing = RendezvousMachine()
    playing.begin_with((1, 2), 0)
    with playing.stack:
        rounds = playing.world.loop.create_task(two_rounds(playing.world))
        playing.world.loop.advance(60.0)
        assert rounds.result() == [1, 2]
