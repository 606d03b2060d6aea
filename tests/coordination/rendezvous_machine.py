"""All events of a torchrun rendezvous in random order, and what must hold at the end."""

from __future__ import annotations

import contextlib
import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rendezvous_peer import Intent, Peer
from rendezvous_world import LANES, World
from virtual_loop import virtual_time

from instep.rendezvous.records import Limits, Round

MOST_PEERS = 5
REST_S = 150
QUIET_S = 25.0

DEFAULT = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
HUNT = settings(DEFAULT, max_examples=300, phases=(Phase.generate,), report_multiple_bugs=False)
DEEP = settings(DEFAULT, max_examples=2500, stateful_step_count=50, derandomize=False)
IS_DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
PROFILE = DEEP if IS_DEEP else DEFAULT
HISTORY_PROFILE = DEEP if IS_DEEP else settings(DEFAULT, max_examples=40)

which = st.integers(0, MOST_PEERS - 1)


class RendezvousMachine(RuleBasedStateMachine):
    """Faults end by themselves; `come_to_rest` waits until they have, and then for the round that is due."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.world: World

    @initialize(limits=st.sampled_from([(1, 2), (2, 2), (1, 4), (2, 3), (3, 5)]), count=st.integers(1, 4))
    def begin(self, limits: tuple[int, int], count: int) -> None:
        self.begin_with(limits, count)

    def begin_with(self, limits: tuple[int, int], count: int) -> None:
        """Starts `count` agents, and lets them do their first acts."""
        self.world = World(Limits(min_nodes=limits[0], max_nodes=limits[1]))
        self.stack.enter_context(virtual_time(self.world.loop))
        self.stack.enter_context(self.world)
        for _ in range(count):
            self.world.start()
        self.world.loop.advance(5.0)

    # -- what operators and workers do ---------------------------------------------------------------------------------

    @rule()
    def start(self) -> None:
        if len(self.world.alive()) < MOST_PEERS:
            self.world.start()
            self.world.loop.settle()

    @rule(peer=which, wish=st.sampled_from(["fail", "fail", "fail", "leave", "finish"]))
    def wish(self, peer: int, wish: Intent) -> None:
        if (found := self._peer(peer)) is not None and found.content_in is not None:
            found.wish = wish

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.5, 6.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.loop.advance(seconds)

    # -- faults -----------------------------------------------------------------------------------------------------

    @rule(peer=which, guarded=st.booleans())
    def crash(self, peer: int, guarded: bool) -> None:
        if (found := self._peer(peer)) is not None:
            found.crash()
            if guarded:
                self.world.loop.call_later(0.5, self.world.tell_of_death, found)
            self.world.loop.settle()

    @rule(peer=which, seconds=st.sampled_from([1.0, 6.0, 12.0, 40.0]))
    def cut_off(self, peer: int, seconds: float) -> None:
        if (found := self._peer(peer)) is not None:
            self.world.cut_off(found, seconds)

    @rule(peer=which, seconds=st.sampled_from([3.0, 9.5, 14.0, 40.0]))
    def freeze(self, peer: int, seconds: float) -> None:
        if (found := self._peer(peer)) is not None:
            self.world.freeze(found, seconds)

    @rule(seconds=st.sampled_from([1.0, 6.0, 14.0, 70.0]), leases_end=st.booleans())
    def outage(self, seconds: float, leases_end: bool) -> None:
        self.world.outage(seconds, leases_end=leases_end)
        self.world.loop.advance(seconds + 0.1)

    @rule(peer=which)
    def lease_ends(self, peer: int) -> None:
        if (found := self._peer(peer)) is not None:
            self.world.lease_ends(found)

    @rule(peer=which, count=st.integers(1, 3))
    def lose_replies(self, peer: int, count: int) -> None:
        if (found := self._peer(peer)) is not None:
            found.client.replies_to_lose = count

    @rule(peer=which, lane=st.sampled_from(LANES))
    def lag(self, peer: int, lane: str) -> None:
        if (found := self._peer(peer)) is not None:
            self.world.lag(found, lane, 3.0)

    @rule(full=st.booleans())
    def database(self, full: bool) -> None:
        self.world.store.full = full

    @rule(part=st.sampled_from(["nodes", "election", "gone"]), index=which)
    def delete_by_hand(self, part: str, index: int) -> None:
        world = self.world
        found = [item.key for item in world.store.range(getattr(world.keys, part)).kvs]
        if not found:
            return
        world.delete(found[index % len(found)])
        world.loop.settle()

    # -- what holds -------------------------------------------------------------------------------------------------

    @invariant()
    def no_rule_is_broken(self) -> None:
        if hasattr(self, "world"):
            assert not self.world.checker.faults, self.world.checker.faults

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "world"):
                self.come_to_rest()

    def come_to_rest(self) -> None:
        """Without faults, all available nodes run together, and then nothing more happens."""
        self.world.loop.advance(60.0)
        self.world.heal()
        self.world.loop.advance(10.0)  # refused nodes try again
        for _ in range(REST_S):
            if not (unmet := self._unmet()):
                break
            self.world.loop.advance(1.0)
            self._what_must_end_ends()
            self.no_rule_is_broken()
        else:
            raise AssertionError(f"not in {REST_S} s: {unmet}, {self._keys()}")
        before = self._round()
        self.world.loop.advance(QUIET_S)
        self.no_rule_is_broken()
        assert self._round() == before, f"{before} became {self._round()} and nothing had happened"

    def _what_must_end_ends(self) -> None:
        """Workers of a round that has lost a node fail; those of a run that has ended finish."""
        for peer in self.world.alive():
            current = peer.content_in
            if not peer.running or current is None or peer.wish is not None or peer.node is None:
                continue
            there = {one.name for one in self.world.alive() if _is_in(one, current)}
            if peer.node.is_closed:
                peer.wish = "finish"
            elif not {seat.node for seat in current.seats} <= there:
                peer.wish = "fail"

    def _unmet(self) -> list[str]:
        peers = self.world.alive()
        described = [f"{self._round()}, {peers}"]
        if any(peer.node is not None and peer.node.is_closed for peer in peers):
            return ["the run has ended and they are there", *described]
        if len(peers) < self.world.limits.min_nodes:
            return [] if all(peer.asking for peer in peers) else ["there are too few to run", *described]
        current = self._round()
        if current is None or current.wanted:
            return ["no round", *described]
        together = {peer.name for peer in peers if peer.running and _is_in(peer, current)}
        wanted = min(self.world.limits.max_nodes, len(peers))
        if together != {seat.node for seat in current.seats} or len(together) < wanted:
            return [f"{together} run together", *described]
        return []

    def _keys(self) -> list[str]:
        listing = self.world.store.range(self.world.keys.root)
        return [f"{item.key.removeprefix(self.world.keys.root)}={item.text}" for item in listing.kvs]

    def _round(self) -> Round | None:
        found = self.world.store.get(self.world.keys.round)
        return Round.decode(found.value) if found is not None else None

    def _peer(self, index: int) -> Peer | None:
        found = self.world.alive()
        return found[index % len(found)] if found else None


class HistoryRendezvousMachine(RendezvousMachine):
    """etcd may show an older history at any time, repeatedly; then single writes are not checked."""

    @rule(share=st.floats(0.0, 1.0))
    def history_goes_back(self, share: float) -> None:
        self.world.go_back(1 + int(share * (self.world.store.revision - 1)))
        self.world.loop.settle()


def _is_in(peer: Peer, current: Round) -> bool:
    return peer.content_in is not None and current.is_same_formation(peer.content_in)
