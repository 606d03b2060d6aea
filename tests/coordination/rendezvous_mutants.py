"""The rendezvous with one rule broken at a time. The machine must detect each, or its success would prove nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

from instep.etcd import Compare
from instep.recipes.fence import Fence
from instep.recipes.informer import Informer
from instep.rendezvous import coordinator, decision
from instep.rendezvous.decision import RendezvousSituation, RoundStatus
from instep.rendezvous.node import RendezvousNode

Mutant = Callable[[], contextlib.AbstractContextManager[Any]]
ALWAYS = Compare.absent("/nobody/ever/writes/this")


@contextlib.contextmanager
def _looking(
    change: Callable[[RendezvousSituation], RendezvousSituation], standing: Callable[[RoundStatus], RoundStatus]
) -> Iterator[None]:
    real = decision.round_status

    def changed(now: RendezvousSituation) -> RoundStatus:
        return standing(real(change(now)))

    with mock.patch.object(decision, "round_status", changed), mock.patch.object(coordinator, "round_status", changed):
        yield


def absent_nodes_are_dead_at_once() -> Any:
    return _looking(lambda now: replace(now, etcd_stable=True), lambda standing: standing)


def absent_nodes_are_never_dead() -> Any:
    return _looking(
        lambda now: replace(now, etcd_stable=False), lambda standing: replace(standing, waits_for_absent=False)
    )


def running_nodes_are_not_waited_for() -> Any:
    return _looking(lambda now: now, lambda standing: replace(standing, content=frozenset()))


def a_node_that_was_just_seated_asks() -> Any:
    def forgetful(now: RendezvousSituation) -> RendezvousSituation:
        stale = {item.node for item in now.nodes if item.registration.asks}
        if now.round is None:
            return now
        seats = tuple(seat for seat in now.round.seats if seat.node not in stale)
        return replace(now, round=now.round.model_copy(update={"seats": seats}))

    return _looking(forgetful, lambda standing: standing)


def an_epoch_begins_while_the_previous_one_runs() -> Any:
    return _looking(lambda now: now, lambda standing: replace(standing, waits_for_former=False))


def ranks_follow_the_order_of_arrival() -> Any:
    def by_token(standing: RoundStatus) -> RoundStatus:
        return replace(standing, asking=tuple(sorted(standing.asking, key=lambda item: item.token)))

    return _looking(lambda now: now, by_token)


def departures_are_not_noticed() -> Any:
    return _looking(lambda now: replace(now, gone=frozenset()), lambda standing: standing)


def a_wanted_round_is_not_noticed() -> Any:
    def deaf(self: RendezvousNode) -> bool:
        current = self.known.round
        return current is not None and current.number > self._round > 0

    return mock.patch.object(RendezvousNode, "is_left_behind", property(deaf))


def no_node_is_asked_to_meet_again() -> Any:
    return mock.patch.object(decision, "_about_current_round", return_value=None)


def any_node_that_believes_to_coordinate_may_write() -> Any:
    return mock.patch.object(Fence, "compare", return_value=ALWAYS)


def _unguarded(part: str) -> Any:
    real = coordinator.unchanged

    def unchanged(informer: Informer, key: str) -> Compare:
        return ALWAYS if key.endswith(part) else real(informer, key)

    return mock.patch.object(coordinator, "unchanged", unchanged)


def a_round_is_formed_in_a_run_that_was_closed_unnoticed() -> Any:
    return _unguarded("/closed")


@contextlib.contextmanager
def a_round_is_written_over_another() -> Iterator[None]:
    """Without the fence, the comparison of the round's revision would still stop a former coordinator."""
    with any_node_that_believes_to_coordinate_may_write(), _unguarded("/round"):
        yield
