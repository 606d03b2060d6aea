"""The machine finds each broken rule of the rendezvous. For rare violations, this module has the chain of events.

With the unchanged rules, every chain keeps the promises.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rendezvous_mutants as mutants
from hypothesis.stateful import run_state_machine_as_test
from rendezvous_machine import HUNT, RendezvousMachine
from rendezvous_mutants import Mutant
from rendezvous_peer import TTL_S, Peer
from rendezvous_world import LANES, World

from instep.rendezvous.records import Closed

Chain = Callable[[World], None]

BROKEN = r"no coordinator has noticed|is formed|begins while|ranks move|wrote|became|not in \d+ s"


@pytest.mark.parametrize(
    "mutant",
    [
        mutants.running_nodes_are_not_waited_for,
        mutants.a_node_that_was_just_seated_asks,
        mutants.a_wanted_round_is_not_noticed,
        mutants.no_node_is_asked_to_meet_again,
        # Below there is a chain of events for each of these.
        pytest.param(mutants.absent_nodes_are_never_dead, marks=pytest.mark.long),
        pytest.param(mutants.absent_nodes_are_dead_at_once, marks=pytest.mark.long),
        pytest.param(mutants.ranks_follow_the_order_of_arrival, marks=pytest.mark.long),
        pytest.param(mutants.any_node_that_believes_to_coordinate_may_write, marks=pytest.mark.long),
    ],
    ids=lambda item: item.__name__,
)
def test_the_machine_finds_a_broken_rule(mutant: Mutant) -> None:
    with mutant(), pytest.raises(AssertionError):
        run_state_machine_as_test(RendezvousMachine, settings=HUNT)


def workers_fail_before_all_are_back_from_an_outage(world: World) -> None:
    first, second = world.peers
    for peer in (first, second):
        _cut(peer)
    world.loop.advance(TTL_S + 2.0)
    _mend(first)
    first.wish = "fail"
    world.loop.advance(5.0)
    _mend(second)
    world.loop.advance(5.0)


def a_node_dies_silently(world: World) -> None:
    world.peers[0].crash()


def a_node_takes_a_new_lease_and_another_fails(world: World) -> None:
    world.lease_ends(world.peers[0])
    world.loop.advance(5.0)
    world.peers[1].wish = "fail"


def a_node_is_ended_by_a_signal(world: World) -> None:
    """Only its departure notifies the others: their workers may hang."""
    world.peers[1].wish = "leave"
    world.loop.advance(4.0)
    assert world.checker.round is not None
    assert world.checker.round.number == 2, "no coordinator has noticed that a node has left"


def a_newcomer_arrives_while_others_end(world: World) -> None:
    world.peers[1].wish = "finish"
    world.loop.advance(5.0)
    world.start()
    world.start()
    world.loop.advance(5.0)


def a_run_is_closed_during_the_last_call(world: World) -> None:
    for peer in world.peers:
        peer.wish = "fail"
    world.loop.advance(1.2)
    for peer in world.peers:
        for lane in LANES:
            peer.client.hold_watch(lane)
    world.checker.acting = None
    world.store.put(world.keys.closed, Closed(epoch=1).encode())
    world.loop.advance(3.0)
    for peer in world.peers:
        _mend(peer)


def a_write_of_a_former_coordinator_arrives_late(world: World) -> None:
    """It is for a newcomer that has left again, so the round does not change."""
    former = _coordinator(world)
    former.client.hold_calls()
    newcomer = world.start()
    world.loop.advance(1.0)
    assert any("round" in request.text for request in former.client.pending)
    newcomer.crash()
    world.lease_ends(newcomer)
    world.loop.advance(TTL_S * 2)
    assert _coordinator(world) is not former
    _mend(former)


def a_round_that_was_not_formed_in_time_arrives_late(world: World) -> None:
    former = _coordinator(world)
    for peer in world.peers:
        peer.wish = "fail"
    world.loop.advance(1.5)
    former.client.hold_calls()
    world.loop.advance(TTL_S * 2)
    assert _coordinator(world) is not former
    assert any("round" in request.text for request in former.client.pending)
    former.disturbed = True
    _mend(former)


CHAINS: list[tuple[Chain, Mutant]] = [
    (a_node_dies_silently, mutants.absent_nodes_are_never_dead),
    (workers_fail_before_all_are_back_from_an_outage, mutants.absent_nodes_are_dead_at_once),
    (a_node_takes_a_new_lease_and_another_fails, mutants.ranks_follow_the_order_of_arrival),
    (a_node_is_ended_by_a_signal, mutants.departures_are_not_noticed),
    (a_newcomer_arrives_while_others_end, mutants.an_epoch_begins_while_the_previous_one_runs),
    (a_run_is_closed_during_the_last_call, mutants.a_round_is_formed_in_a_run_that_was_closed_unnoticed),
    (a_write_of_a_former_coordinator_arrives_late, mutants.any_node_that_believes_to_coordinate_may_write),
    (a_round_that_was_not_formed_in_time_arrives_late, mutants.a_round_is_written_over_another),
]


@pytest.mark.parametrize(("chain", "mutant"), CHAINS, ids=lambda item: item.__name__)
def test_a_chain_of_events_keeps_the_rules_and_breaks_one_with_the_rule_broken(chain: Chain, mutant: Mutant) -> None:
    _play(chain)
    with mutant(), pytest.raises(AssertionError, match=BROKEN):
        _play(chain)


def _play(chain: Chain) -> None:
    playing = RendezvousMachine()
    count = 2 if chain is workers_fail_before_all_are_back_from_an_outage else 3
    playing.begin_with((1, 4), count)
    with playing.stack:
        chain(playing.world)
        playing.no_rule_is_broken()
        playing.come_to_rest()


def _cut(peer: Peer) -> None:
    peer.client.hold_calls()
    for lane in LANES:
        peer.client.hold_watch(lane)


def _mend(peer: Peer) -> None:
    peer.client.release_calls()
    for lane in LANES:
        peer.client.release_watch(lane)


def _coordinator(world: World) -> Peer:
    front = world.checker.coordinator()
    return next(peer for peer in world.alive() if peer.name == front)
