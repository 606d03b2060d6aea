"""The etcd client of one agent, with a network that a test can delay, cut, and make lose messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Self, TypeVar

from model_etcd import ModelEtcd

from instep.errors import EtcdError, EtcdFull, EtcdUnavailable, HistoryChanged
from instep.etcd import Compare, Event, KeyValue, Lease, Listing, Op, StoreHistory, TxnResult, WatchBatch

T = TypeVar("T")

TIMEOUT_S = 5.0


class Request(Generic[T]):
    """One call under way: its execution at the server and its reply are two events, and either may be lost."""

    def __init__(
        self, text: str, execute: Callable[[], T], future: asyncio.Future[T], notice: Callable[[], None]
    ) -> None:
        self.text = text
        self._notice = notice
        self._execute = execute
        self._future = future

    def __repr__(self) -> str:
        return f"Request({self.text})"

    def answer(self) -> None:
        """Executes it and delivers its reply, if a caller still waits for it."""
        try:
            result = self._execute()
        except EtcdError as error:
            if not self._future.done():
                self._future.set_exception(error)
            return
        if not self._future.done():
            self._future.get_loop().call_soon(self._notice)  # before the caller that waits for the result continues
            self._future.set_result(result)

    def lose_reply(self) -> None:
        with contextlib.suppress(EtcdError):
            self._execute()
        self.lose()

    def lose(self) -> None:
        if not self._future.done():
            self._future.set_exception(EtcdUnavailable("the connection broke", applied_unknown=True))


class ModelClient:
    """The parts of instep.etcd.Client that the agent uses. Each of `lanes` can be held: its messages then wait.

    Lanes: `calls` (all requests), and for watches the part of the run below which they look (`state`, `members`, ...).
    """

    def __init__(self, store: ModelEtcd, root: str) -> None:
        self.store = store
        self.endpoint_index = 0
        self.endpoint_count = 1
        self.link = "connected"
        self.history = StoreHistory()
        self._generation = store.generation
        self.calls_held = False
        self.dead = False
        self.pending: deque[Request[Any]] = deque()
        self.watches: list[ModelWatch] = []
        self.held_lanes: dict[str, int] = {}
        self.leases: set[int] = set()
        self.never: list[asyncio.Future[Any]] = []
        """Kept because garbage collection must not end waiting tasks before the loop ends."""
        self._root = root
        store.watchers.append(self.wake)

    # -- what the agent calls ---------------------------------------------------------------------------------------

    async def get(self, key: str, *, timeout_s: float | None = None) -> KeyValue | None:
        return await self._call(f"get {key}", lambda: self.store.get(key), timeout_s)

    async def range(self, prefix: str, *, timeout_s: float | None = None) -> Listing:
        return await self._call(f"range {prefix}", lambda: self.store.range(prefix), timeout_s)

    async def put(self, key: str, value: str, *, lease: int = 0, timeout_s: float | None = None) -> int:
        def execute() -> int:
            self._need_space()
            return self.store.put(key, value, lease)

        return await self._call(f"put {key}", execute, timeout_s)

    async def delete(self, key: str, *, timeout_s: float | None = None) -> int:
        def execute() -> int:
            return self.store.txn((), (Op.delete(key),)).results[0].deleted  # type: ignore[union-attr]

        return await self._call(f"delete {key}", execute, timeout_s)

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        def execute() -> TxnResult:
            self._need_space()
            return self.store.txn(compares, then, otherwise)

        return await self._call("; ".join(op.text for op in then), execute, timeout_s)

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> Lease:
        def execute() -> Lease:
            self._need_space()
            lease = self.store.grant()
            self.leases.add(lease)
            return Lease(lease, ttl_s)

        return await self._call("grant", execute, timeout_s)

    async def lease_revoke(self, lease_id: int, *, timeout_s: float | None = None) -> None:
        await self._call("revoke", lambda: self.store.revoke(lease_id), timeout_s)

    async def keepalive(
        self, lease_id: int, *, timeout_s: float | None = None, endpoint_index: int | None = None
    ) -> int:
        def execute() -> int:
            self.store.keep(lease_id)
            return 10

        return await self._call("keepalive", execute, timeout_s)

    def watch(
        self,
        key: str,
        *,
        prefix: bool = True,
        start_revision: int = 0,
        listed: object = None,
        history_changes: int | None = None,
    ) -> ModelWatch:
        watch = ModelWatch(self, key, prefix, start_revision, self.lane_of(key))
        watch.follow(history_changes)
        return watch

    def notice(self) -> None:
        """An answer or an event has arrived: it shows whether etcd has the known history."""
        if self._generation != self.store.generation:
            self._generation = self.store.generation
            self.history.changed("it was put back")

    def _need_space(self) -> None:
        if self.store.full:
            raise EtcdFull("the database has reached its quota")

    # -- what the test does to it -----------------------------------------------------------------------------------

    def hold_calls(self) -> None:
        self.calls_held = True

    def release_calls(self) -> None:
        self.calls_held = False
        while self.pending:
            self.pending.popleft().answer()

    def hold_watch(self, lane: str) -> None:
        self.held_lanes.setdefault(lane, self.store.revision)

    def release_watch(self, lane: str, batches: int | None = None) -> None:
        """Lets this many more revisions through, or all from now on."""
        if lane not in self.held_lanes:
            return
        if batches is None:
            del self.held_lanes[lane]
        else:
            self.held_lanes[lane] = min(self.held_lanes[lane] + batches, self.store.revision)
        self.wake()

    def wake(self) -> None:
        for watch in self.watches:
            watch.moved.set()

    def visible(self, lane: str) -> int:
        return self.held_lanes.get(lane, self.store.revision)

    def lane_of(self, key: str) -> str:
        parts = key.removeprefix(self._root).split("/")
        return parts[1] if parts[0] == "reports" else parts[0]

    async def _call(self, text: str, execute: Callable[[], T], timeout_s: float | None) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self.dead:
            self.never.append(future)
            return await future
        request = Request(text, execute, future, self.notice)
        if self.calls_held:
            self.pending.append(request)
        else:
            asyncio.get_running_loop().call_soon(self._arrive, request)
        try:
            async with asyncio.timeout(TIMEOUT_S if timeout_s is None else timeout_s):
                return await future
        except TimeoutError:
            raise EtcdUnavailable("no answer in time", applied_unknown=True) from None

    def _arrive(self, request: Request[Any]) -> None:
        if self.dead or self.calls_held:
            self.pending.append(request)
        else:
            request.answer()


class ModelWatch:
    """Delivers whole revisions in order, each once, as far as its lane permits."""

    def __init__(self, client: ModelClient, key: str, prefix: bool, start_revision: int, lane: str) -> None:
        self._client = client
        self._key = key
        self._prefix = prefix
        self._next = start_revision
        self._lane = lane
        self._changes = client.history.changes
        self.moved = asyncio.Event()

    def follow(self, history_changes: int | None) -> None:
        """The history at the time of the listing."""
        self._changes = self._changes if history_changes is None else history_changes

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)
        self._next = self._next or self._client.store.revision + 1
        self._client.watches.append(self)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._client.watches.remove(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        while True:
            self.moved.clear()
            if not self._client.dead and self._lane not in self._client.held_lanes:
                self._client.notice()
            if self._changes != self._client.history.changes:
                raise HistoryChanged("etcd holds another history", compact_revision=0)
            batch = self._look()
            if batch is not None:
                await asyncio.sleep(0)
                return batch
            await self.moved.wait()

    def _look(self) -> WatchBatch | None:
        if self._client.dead:
            return None
        history = self._client.store.history
        last = self._client.visible(self._lane)
        for batch in history[max(0, self._next - 2) :]:
            if batch.revision > last:
                return None
            if batch.revision < self._next:
                continue
            self._next = batch.revision + 1
            events = tuple(event for event in batch.events if self._covers(event))
            if events:
                return WatchBatch(batch.revision, events)
        return None

    def _covers(self, event: Event) -> bool:
        key = event.kv.key
        return key.startswith(self._key) if self._prefix else key == self._key
