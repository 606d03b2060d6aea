"""What must hold for every round that is written: checked at each write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from model_etcd import ModelEtcd

from instep.etcd import Event
from instep.protocol.keys import last_part
from instep.recipes.election import incumbent_of
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Closed, Registration, Round


class CheckedPeer(Protocol):
    """The parts of a peer that the checker uses."""

    asking: bool
    content_in: Round | None
    disturbed: bool

    @property
    def name(self) -> str: ...


class Peers(Protocol):
    def alive(self) -> Sequence[CheckedPeer]: ...


class RendezvousChecker:
    """`faults` holds the rules that were broken, each with what broke it."""

    def __init__(self, store: ModelEtcd, keys: RendezvousKeys, peers: Peers) -> None:
        self.faults: list[str] = []
        self.acting: CheckedPeer | None = None
        """The node whose request etcd executes; None: an operator."""
        self.round: Round | None = None
        """The newest round that was written."""
        self.formed: dict[int, Round] = {}
        self.rewound = False
        """The history of etcd has gone back: the rules about numbers and earlier records apply to one history only."""
        self.asked: dict[str, Registration] = {}
        """The last registration of each node, also of nodes that have left."""
        self._store = store
        self._keys = keys
        self._peers = peers
        store.watchers.append(self._look)

    def blame(self, fault: str) -> None:
        self.faults.append(fault)

    def seated(self, name: str, given: Round) -> None:
        formed = self.formed.get(given.number)
        is_formed = self.rewound or (formed is not None and _same(formed, given))
        self._must(is_formed, f"{name} was given {given}, but {formed} was formed")
        self._must(given.rank_of(name) is not None, f"{name} was given {given}, which does not hold it")

    def met(self, rounds: Iterable[Round]) -> None:
        first, *others = rounds
        agree = all(first.is_same_formation(other) for other in others)
        self._must(agree, f"those who met disagree: {first}, {others}")

    # -- each write -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self.rewound:
            return
        for event in self._store.history[-1].events:
            if event.kind == "put" and event.kv.key.startswith(self._keys.nodes):
                self._take(event)
            elif event.kv.key == self._keys.round:
                self._check(Round.decode(event.kv.value))

    def _take(self, event: Event) -> None:
        registration = Registration.decode_or_none(event.kv.value)
        if registration is not None:
            self.asked[last_part(event.kv.key)] = registration

    def _check(self, new: Round) -> None:
        before, self.round = self.round, new
        self._about_the_writer(new)
        if before is not None and new.number == before.number:
            self._about_the_same(before, new)
        else:
            self._about_numbers(before, new)
            self._about_seats(before, new)
            self._about_epochs(before, new)
            self._about_content(before, new)
            self.formed[new.number] = new

    def coordinator(self) -> str | None:
        """The name of the node that is in front."""
        candidates = {item.key: item for item in self._store.range(self._keys.election).kvs}
        front = incumbent_of(candidates, self._keys.election)
        return front.value if front is not None else None

    def _about_the_writer(self, new: Round) -> None:
        writer = self.acting.name if self.acting is not None else None
        front = self.coordinator()
        self._must(front == writer, f"{writer} wrote {new} while {front} coordinates")

    def _about_the_same(self, before: Round, new: Round) -> None:
        """Each number has one document of seats: only `wanted` changes."""
        self._must(_same(before, new) and new.epoch == before.epoch, f"{before} became {new}")
        if new.wanted:
            gone = {last_part(item.key) for item in self._store.range(self._keys.gone).kvs}
            left = any(seat.node in gone for seat in new.seats)
            full = len(self._settled(new)) >= new.limits.max_nodes
            asks = any(one.asks for one in self._registrations()) or any(peer.asking for peer in self._peers.alive())
            self._must(left or (asks and not full), f"{new} is wanted, and nobody has reason to")

    def _about_numbers(self, before: Round | None, new: Round) -> None:
        last = max([before.number if before is not None else 0, *(one.round for one in self._registrations())])
        self._must(new.number > last, f"{new} after {before}, of nodes of {last}")
        inside = [peer for peer in self._peers.alive() if peer.content_in is not None and not peer.disturbed]
        again = [peer for peer in inside if peer.content_in is not None and peer.content_in.number >= new.number]
        self._must(not again, f"{new} is formed while {again} are in one of that number or a later one")
        self._must(new.number not in self.formed, f"{new} has the number of another round")

    def _about_seats(self, before: Round | None, new: Round) -> None:
        names = [seat.node for seat in new.seats]
        self._must(len(set(names)) == len(names), f"{new} seats a node twice")
        self._must(new.limits.min_nodes <= len(names) <= new.limits.max_nodes, f"{new} is not of {new.limits} nodes")
        for name in names:
            asked = self.asked.get(name)
            fits = asked is not None and asked.epoch == new.epoch and asked.round < new.number
            fits = fits and asked is not None and asked.asks
            self._must(fits, f"{new} seats {name}, which has not asked: {asked}")
        first = self.asked.get(names[0]) if names else None
        self._must(first is not None and new.store == first.store, f"{new} has another store than {first}")
        if before is not None and before.epoch == new.epoch:
            stayed = [seat.node for seat in before.seats if seat.node in names]
            self._must(names[: len(stayed)] == stayed, f"ranks move from {before} to {new}")

    def _about_epochs(self, before: Round | None, new: Round) -> None:
        closed = self._store.get(self._keys.closed)
        until = Closed.decode(closed.value).epoch if closed is not None else 0
        self._must(new.epoch > until, f"{new} is formed although {until} is closed")
        former = before.epoch if before is not None else until
        if new.epoch > former:
            left = [one for one in self._registrations() if one.epoch < new.epoch]
            self._must(not left, f"{new} begins while {left} are there")

    def _about_content(self, before: Round | None, new: Round) -> None:
        """No node is restarted because of others, or of etcd, unless the round is wanted."""
        ignored = [] if before is None or before.epoch < new.epoch else self._settled(before)
        self._must(not ignored, f"{new} is formed although {ignored} were content with {before}")

    # -- who is there -----------------------------------------------------------------------------------------------

    def _settled(self, current: Round) -> list[CheckedPeer]:
        return [
            peer
            for peer in self._peers.alive()
            if peer.content_in is not None and peer.content_in.number == current.number and not peer.disturbed
        ]

    def _names(self) -> list[str]:
        return [last_part(item.key) for item in self._store.range(self._keys.nodes).kvs if "/." not in item.key]

    def _registrations(self) -> list[Registration]:
        return [self.asked[name] for name in self._names()]

    def _must(self, holds: bool, fault: str) -> None:
        if not holds:
            self.blame(fault)


def _same(one: Round, other: Round) -> bool:
    return (one.epoch, one.seats, one.store, one.limits) == (other.epoch, other.seats, other.store, other.limits)
