"""Connections: one per endpoint, made when first used, replaced when suspect or when certificates change."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Callable, Coroutine
from typing import Any

from instep.errors import EtcdError
from instep.etcd import _wire
from instep.etcd._endpoints import Endpoint
from instep.etcd._grpc import aio, grpc
from instep.etcd._tls import TlsFiles

_LOOK_AT_FILES_EVERY_S = 1.0
# A connection on which etcd was heard this recently is not the reason for an unanswered call.
_FRESH_S = 1.5

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # A replaced connection must be a new one, not a share of the old one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # etcd closes connections that ping more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class Connection:
    """One gRPC channel to one endpoint. Closes once it is retired and its last user has released it."""

    def __init__(self, index: int, endpoint: Endpoint, channel: aio.Channel, on_idle: Callable[[Connection], None]):
        self.index = index
        self.endpoint = endpoint
        self.channel = channel
        self.proven = False
        self.retired = False
        self.heard_at = 0.0
        self._users = 0
        self._on_idle = on_idle
        self.calls: dict[_wire.Method, Any] = {
            m: channel.unary_unary(m.path, request_serializer=m.serialize, response_deserializer=m.deserialize)
            for m in _wire.UNARY
        }
        watch = _wire.WATCH
        self.watch: Any = channel.stream_stream(
            watch.path, request_serializer=watch.serialize, response_deserializer=watch.deserialize
        )

    def __repr__(self) -> str:
        return f"Connection({self.endpoint}, proven={self.proven}, retired={self.retired}, users={self._users})"

    def acquire(self) -> None:
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if self.retired and not self._users:
            self._on_idle(self)

    def retire(self) -> None:
        self.retired = True
        if not self._users:
            self._on_idle(self)

    def heard(self) -> None:
        self.proven = True
        self.heard_at = time.monotonic()

    @property
    def fresh(self) -> bool:
        """Whether etcd was heard on it a moment ago; a watch makes it say something every second."""
        return self.proven and self.heard_lately

    @property
    def heard_lately(self) -> bool:
        return time.monotonic() - self.heard_at < _FRESH_S

    async def answers(self, metadata: Any, limit_s: float) -> bool:
        """Whether the server says anything within `limit_s`; a refusal is an answer too."""
        self.acquire()
        try:
            await self.calls[_wire.STATUS](_wire.StatusRequest(), timeout=limit_s, metadata=metadata)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return False
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return True  # the call itself then fails at once, and says why
        finally:
            self.release()
        self.heard()
        return True

    async def ready(self, limit_s: float) -> bool:
        """Whether the connection stands within `limit_s`; nothing of ours is sent on it."""
        try:
            async with asyncio.timeout(limit_s):
                state = self.channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        return True  # the call itself fails at once then, unsent, and says why
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return True


class Pool:
    """All connections of a client, and which endpoint is the current one: it stays until it fails."""

    def __init__(self, endpoints: tuple[Endpoint, ...], files: TlsFiles | None) -> None:
        self.endpoints = endpoints
        self.files = files
        self.switches = 0
        self.reconnects = 0
        self._current = 0
        self._connections: list[Connection | None] = [None] * len(endpoints)
        self._retired: set[Connection] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._look_at = 0.0

    def __repr__(self) -> str:
        return f"Pool({', '.join(map(str, self.endpoints))}; current {self.endpoint})"

    def __len__(self) -> int:
        return len(self.endpoints)

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints[self._current]

    @property
    def current(self) -> int:
        return self._current

    def connection(self, index: int | None = None) -> Connection:
        """The connection to the current endpoint or to another; made if need be, not waited for."""
        if self._closed:
            raise EtcdError("The etcd client is closed: make a new one.")
        if self.files is not None:
            self._look_at_files(self.files)
        index = self._current if index is None else index
        connection = self._connections[index]
        if connection is None:
            connection = self._connections[index] = self._connect(index)
        return connection

    def failed(self, connection: Connection, *, suspect: bool) -> None:
        """Turn to the next endpoint. `suspect`: the connection stands but is silent; replace it."""
        connection.proven = False
        if connection.index == self._current and len(self) > 1 and not connection.retired:
            self._current = (self._current + 1) % len(self)
            self.switches += 1
        if suspect and not connection.heard_lately:
            self._replace(connection)

    def _connect(self, index: int) -> Connection:
        endpoint = self.endpoints[index]
        if not endpoint.secure:
            channel = aio.insecure_channel(endpoint.target, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials() if self.files is None else self.files.credentials()
            channel = aio.secure_channel(endpoint.target, credentials, options=_OPTIONS)
        return Connection(index, endpoint, channel, self._close_soon)

    def _look_at_files(self, files: TlsFiles) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_AT_FILES_EVERY_S
        if any(self._connections) and files.changed():
            for connection in filter(None, list(self._connections)):
                self._replace(connection)

    def _replace(self, connection: Connection) -> None:
        if connection.retired:
            return
        self._connections[connection.index] = None
        self._retired.add(connection)
        self.reconnects += 1
        connection.retire()

    def _close_soon(self, connection: Connection) -> None:
        if connection in self._retired:
            self._retired.discard(connection)
            self._track(connection.channel.close(None))

    def _track(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every channel; calls still running fail. Returns when nothing of ours runs any more."""
        self._closed = True
        left = [c for c in self._connections if c is not None] + list(self._retired)
        self._connections = [None] * len(self)
        self._retired.clear()
        for connection in left:
            await connection.channel.close(None)
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)
        await _let_grpc_finish()


async def _let_grpc_finish() -> None:
    """Wait for the tasks with which gRPC notices that its calls have ended: milliseconds, at most 0.2 s."""
    deadline = time.monotonic() + 0.2
    while any(_is_compiled(task) for task in asyncio.all_tasks()) and time.monotonic() < deadline:  # noqa: ASYNC110  # gRPC offers nothing to wait for
        await asyncio.sleep(0.001)


def _is_compiled(task: asyncio.Task[Any]) -> bool:
    # gRPC names its tasks in no way, but it is written in Cython, whose coroutines are a type of their own.
    return not isinstance(task.get_coro(), types.CoroutineType)
