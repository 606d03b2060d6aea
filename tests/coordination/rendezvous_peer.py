"""One torchrun agent of the model: the production RendezvousNode, called as the handler calls it.

It opens a store for each request, gets a seat, meets the others in the store of rank 0, and runs workers until they
fail, finish, or the round has to be formed again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, cast

from freezing_loop import OWNER
from model_client import ModelClient, Request

from instep.errors import EtcdFull, EtcdUnavailable, InstepError, JoinTimeout, RunClosed
from instep.etcd import Client
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Cause, Limits, Round

if TYPE_CHECKING:
    from rendezvous_world import World

T = TypeVar("T")

TTL_S = 10
LAST_CALL_S = 2.0
JOIN_S = 600.0
ARRIVAL_S = TTL_S + 5.0
MONITOR_S = 0.5
RETRY_S = 0.3

Intent: TypeAlias = Literal["fail", "finish", "leave"]


class PeerClient(ModelClient):
    """Records whose request etcd executes, and can lose replies."""

    def __init__(self, world: World, peer: Peer) -> None:
        super().__init__(world.store, world.keys.root)
        self.replies_to_lose = 0
        self._world = world
        self._peer = peer

    async def _call(self, text: str, execute: Callable[[], T], timeout_s: float | None) -> T:
        def as_ours() -> T:
            self._world.checker.acting = self._peer
            return execute()

        return await super()._call(text, as_ours, timeout_s)

    def _arrive(self, request: Request[object]) -> None:
        if self.replies_to_lose and not (self.dead or self.calls_held):
            self.replies_to_lose -= 1
            request.lose_reply()
        else:
            super()._arrive(request)


class Store:
    """A TCPStore: served by one peer until it asks for the next round."""

    def __init__(self, owner: Peer) -> None:
        self.owner = owner
        self.arrived: dict[Peer, Round] = {}


class Peer:
    """One torchrun agent, with its workers."""

    def __init__(self, world: World, pid: int, limits: Limits) -> None:
        self.pid = pid
        self.limits = limits
        self.asking = True
        self.content_in: Round | None = None
        """The last round in which it got a seat; None before that, and while it asks for the next one."""
        self.running = False
        """Whether all nodes of its round have met."""
        self.disturbed = False
        """Whether it alone has had a problem with etcd since it got its seat."""
        self.wish: Intent | None = None
        self.ended: str | None = None
        self.client = PeerClient(world, self)
        self.node: RendezvousNode | None = None
        self._world = world
        self._store: int | None = None
        context = copy_context()
        context.run(OWNER.set, self)
        self._task = world.loop.create_task(self._live(), context=context)

    def __repr__(self) -> str:
        state = self.ended or ("runs" if self.running else "asks" if self.asking else "meets")
        return f"Peer({self.pid}, {state}, {self.wish}, {self.node})"

    @property
    def alive(self) -> bool:
        return self.ended is None

    @property
    def name(self) -> str:
        return self.node.name if self.node is not None else ""

    def crash(self) -> None:
        """Dies at once; what it has sent may still arrive."""
        self._end("crashed")
        self._world.loop.thaw(self)
        self.client.dead = True
        self.client.wake()
        self._world.strays.extend(self.client.pending)
        self.client.pending.clear()
        self._task.cancel()

    # -- what the handler does --------------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            node = await self._entered()
            try:
                await self._rounds(node)
            finally:
                if self.alive:
                    await node.close()
        except (RunClosed, JoinTimeout) as error:
            self._end(repr(error))
        except InstepError as error:
            if self.alive and self.node is not None:  # before that, a refusal is reported to its starter
                self._world.checker.blame(f"{self} was killed by {error!r}")
            self._end(repr(error))
        if self.alive:
            self._end("left")

    def _end(self, why: str) -> None:
        if self.ended is None:
            self.ended = why
        self.asking, self.content_in, self.running = False, None, False
        self._world.stores.pop(self._store, None)

    async def _entered(self) -> RendezvousNode:
        while True:
            node = RendezvousNode(
                cast(Client, self.client),
                self._world.keys,
                self.limits,
                host=f"h{self.pid}",
                pid=self.pid,
                ttl_s=TTL_S,
                last_call_s=LAST_CALL_S,
                clock=self._world.loop.time,
            )
            with contextlib.suppress(EtcdUnavailable):
                self.node = await node.__aenter__()
                return node
            await asyncio.sleep(RETRY_S)

    async def _rounds(self, node: RendezvousNode) -> None:
        cause: Cause | None = "new"
        while cause is not None:
            current = await self._ask(node, cause)
            if not await self._meet(node, current):
                cause = "membership"
                continue
            self.running = True
            cause = await self._train(node)
        if self.wish == "finish":
            await self._finish(node)

    async def _finish(self, node: RendezvousNode) -> None:
        while True:
            with contextlib.suppress(EtcdUnavailable, EtcdFull):
                return await node.finish()
            await asyncio.sleep(RETRY_S)

    async def _ask(self, node: RendezvousNode, cause: Cause) -> Round:
        self._world.stores.pop(self._store, None)
        self._store = self._world.open_store(self)
        self.asking, self.content_in, self.running = True, None, False
        current = await node.seat(Address(host=f"h{self.pid}", port=self._store), cause=cause, timeout_s=JOIN_S)
        self.asking, self.content_in, self.disturbed = False, current, self.client.calls_held
        self._world.checker.seated(self.name, current)
        return current

    async def _meet(self, node: RendezvousNode, current: Round) -> bool:
        assert current.store is not None
        deadline = self._world.loop.time() + ARRIVAL_S
        store = self._world.stores.get(current.store.port)
        if store is None:
            await asyncio.sleep(ARRIVAL_S)  # TCPStore tries that long, and receives nothing else
            return False
        store.arrived[self] = current
        self._world.checker.met(list(store.arrived.values()))
        while len(store.arrived) < len(current.seats):
            if node.is_left_behind or not store.owner.alive or self._world.loop.time() > deadline:
                return False
            await asyncio.sleep(MONITOR_S)
        return True

    async def _train(self, node: RendezvousNode) -> Cause | None:
        """Why it asks again; None: it does not."""
        while True:
            wish, self.wish = self.wish, None
            if wish == "fail":
                return "failure"
            if wish is not None:
                self.wish, self.content_in, self.running = wish, None, False
                return None
            if node.is_left_behind:
                return "membership"
            await asyncio.sleep(MONITOR_S)
