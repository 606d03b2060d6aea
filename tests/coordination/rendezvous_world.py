"""The agents of one torchrun run in one process: production code of node and coordinator, models of the rest."""

from __future__ import annotations

import itertools
from unittest import mock

from freezing_loop import FreezingLoop
from model_client import Request
from model_etcd import ModelEtcd
from rendezvous_checker import RendezvousChecker
from rendezvous_peer import TTL_S, Peer, Store

from instep.etcd import Op
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Departure, Limits

LANES = ("", "state", "election")


class World:
    """The run and the events that can happen to it; a RendezvousChecker checks every write."""

    def __init__(self, limits: Limits) -> None:
        self.loop = FreezingLoop()
        self.store = ModelEtcd(self.loop.time)
        self.keys = RendezvousKeys("/training", "m")
        self.limits = limits
        self.peers: list[Peer] = []
        self.stores: dict[int | None, Store] = {}
        self.strays: list[Request[object]] = []
        self.checker = RendezvousChecker(self.store, self.keys, self)
        self._ports = 1
        self._dark = self._away = False
        names = itertools.count(1)
        self._named = mock.patch("secrets.token_hex", lambda length: f"{next(names):0{2 * length}x}")
        self.loop.call_later(0.5, self._expire_leases)

    def __enter__(self) -> World:
        self._named.start()
        return self

    def __exit__(self, *error: object) -> None:
        for peer in self.alive():
            peer.crash()
        self.loop.shut()
        self._named.stop()

    def alive(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.alive]

    def start(self) -> Peer:
        self.peers.append(Peer(self, len(self.peers) + 1, self.limits))
        return self.peers[-1]

    def open_store(self, owner: Peer) -> int:
        self._ports += 1
        self.stores[self._ports] = Store(owner)
        return self._ports

    # -- faults, each of which ends by itself -----------------------------------------------------------------------

    def cut_off(self, peer: Peer, seconds: float) -> None:
        """Cuts off one node: the others may consider it dead."""
        peer.disturbed = True
        self._hold(peer)
        self.loop.call_later(seconds, self._release, peer)

    def freeze(self, peer: Peer, seconds: float) -> None:
        """Freezes it; afterwards it continues as if nothing had happened."""
        peer.disturbed = True
        self.loop.freeze(peer)
        self.loop.call_later(seconds, self.loop.thaw, peer)

    def outage(self, seconds: float, *, leases_end: bool) -> None:
        """An outage for all: etcd is down, or unreachable."""
        self._dark, self._away = True, not leases_end
        for peer in self.alive():
            self._hold(peer)
        self.loop.call_later(seconds, self.heal)

    def lease_ends(self, peer: Peer) -> None:
        peer.disturbed = True
        for lease in tuple(peer.client.leases):
            self.store.revoke(lease)

    def tell_of_death(self, peer: Peer) -> None:
        """Reports its death as its guard does, which outlives it and knows the name of the node."""
        if peer.node is None:
            return
        self.checker.acting = None
        departure = Op.put(self.keys.gone_of(peer.name), Departure(by="guard").encode())
        self.store.txn((), (departure, Op.delete(self.keys.nodes + peer.name)))
        for lease in peer.client.leases:
            self.store.revoke(lease)

    def delete(self, key: str) -> None:
        """Deletes a key as an operator. A node does not notice that, and counts as dead until its next lease."""
        self.checker.acting = None
        self.store.txn((), (Op.delete(key),))
        for peer in self.alive():
            if key == self.keys.nodes + peer.name:
                peer.disturbed = True
                self.loop.call_later(40.0, self.lease_ends, peer)

    def go_back(self, revision: int) -> None:
        """Restores etcd from a backup of that revision, or wipes it (1)."""
        self.checker.rewound = True
        self.store.go_back(revision)

    def lag(self, peer: Peer, lane: str, seconds: float) -> None:
        peer.client.hold_watch(lane)
        self.loop.call_later(seconds, peer.client.release_watch, lane)

    def heal(self) -> None:
        """Ends all faults of the network; requests of dead nodes have arrived or never will."""
        self.store.full = False
        if self._away:
            self.store.promote()
        self._dark = self._away = False
        while self.strays:
            self.strays.pop(0).answer()
        for peer in self.alive():
            self._release(peer)

    def _hold(self, peer: Peer) -> None:
        peer.client.hold_calls()
        for lane in LANES:
            peer.client.hold_watch(lane)

    def _release(self, peer: Peer) -> None:
        if self._dark or not peer.alive:
            return
        peer.client.release_calls()
        for lane in LANES:
            peer.client.release_watch(lane)

    def _expire_leases(self) -> None:
        """Expires leases as etcd does, twice per second."""
        if not self._away:
            self.store.expire(self.loop.time() - TTL_S)
        self.loop.call_later(0.5, self._expire_leases)
