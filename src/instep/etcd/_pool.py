"""Connections: one per endpoint, opened when first used, replaced when suspect or when certificates change."""

from __future__ import annotations

import asyncio
import time
import types
from typing import Any

from instep.errors import EtcdError
from instep.etcd._connection import Connection
from instep.etcd._endpoints import Endpoint
from instep.etcd._grpc import aio, grpc
from instep.etcd._tls import TlsFiles
from instep.tasks import Background

_LOOK_AT_FILES_EVERY_S = 1.0

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
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
)
_RESOLVE_EVERY_S = 1.0
"""gRPC waits up to two minutes before it resolves a failed name again; a new channel does it at once."""
_RESOLVE_AT_MOST_S = 10.0
"""A resolution that takes longer is started again: its name server may be gone, or back."""


class Pool:
    """All connections of a client, and which endpoint is the current one: it stays until it fails."""

    def __init__(self, endpoints: tuple[Endpoint, ...], files: TlsFiles | None) -> None:
        self.endpoints = endpoints
        self.files = files
        self.switches = 0
        self.reconnects = 0
        self.current = 0
        self._connections: list[Connection | None] = [None] * len(endpoints)
        self._retired: set[Connection] = set()
        self._closing = Background("closing a connection to etcd")
        self._closed = False
        self._look_at = 0.0

    def __repr__(self) -> str:
        return f"Pool({', '.join(map(str, self.endpoints))}; current {self.endpoint})"

    def __len__(self) -> int:
        return len(self.endpoints)

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints[self.current]

    def connection(self, index: int | None = None) -> Connection:
        """The connection to the current endpoint or to another; opened if needed, not awaited."""
        if self._closed:
            raise _client_closed()
        if self.files is not None:
            self._look_at_files(self.files)
        index = self.current if index is None else index
        connection = self._connections[index]
        if connection is None:
            connection = self._connections[index] = self._connect(index)
        return connection

    def failed(self, connection: Connection, *, suspect: bool, unreachable: bool = False) -> None:
        """Switches to the next endpoint. `suspect`: the connection is open but silent, and is replaced. `unreachable`:
        there is none, and the endpoint's name is resolved again, at most once a second.

        The endpoint may be the leader's, and the others may not have noticed yet: nothing is proven any more.
        """
        for known in filter(None, self._connections):
            known.proven = False
        if connection.index == self.current and len(self) > 1 and not connection.retired:
            self.current = (self.current + 1) % len(self)
            self.switches += 1
        if suspect and connection.connected:
            replace = not connection.heard_lately
        else:
            longest_s = _RESOLVE_EVERY_S if unreachable else _RESOLVE_AT_MOST_S
            replace = connection.endpoint.is_named and connection.age_s >= longest_s and (unreachable or suspect)
        if replace:
            self._replace(connection)

    def raise_if_closed(self, error: BaseException) -> None:
        """Translates gRPC's error if the client was closed during a call whose task was not cancelled."""
        if self._closed and not was_cancelled():
            raise _client_closed() from error

    def _connect(self, index: int) -> Connection:
        endpoint = self.endpoints[index]
        if not endpoint.secure:
            channel = aio.insecure_channel(endpoint.target, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials() if self.files is None else self.files.credentials()
            channel = aio.secure_channel(endpoint.target, credentials, options=_OPTIONS)
        generation = 0 if self.files is None else self.files.generation
        return Connection(index, endpoint, channel, self._close_soon, files_generation=generation)

    def _look_at_files(self, files: TlsFiles) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_AT_FILES_EVERY_S
        files.refresh()
        for connection in filter(None, list(self._connections)):
            if connection.files_generation != files.generation:
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
            self._closing.start(connection.channel.close(None))

    async def close(self) -> None:
        """Closes every channel; running calls fail. Returns when no task of the client runs any more."""
        self._closed = True
        left = [c for c in self._connections if c is not None] + list(self._retired)
        self._connections = [None] * len(self)
        self._retired.clear()
        for connection in left:
            await connection.channel.close(None)
        await self._closing.settle(None)
        await _let_grpc_finish()


def _client_closed() -> EtcdError:
    return EtcdError("The etcd client is closed: make a new one.")


def was_cancelled() -> bool:
    """Whether the current task was cancelled; gRPC raises the same error if only its call was."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _let_grpc_finish() -> None:
    """Waits for the tasks with which gRPC notices that its calls have ended: milliseconds, at most 0.2 s."""
    deadline = time.monotonic() + 0.2
    while any(_is_compiled(task) for task in asyncio.all_tasks()) and time.monotonic() < deadline:  # noqa: ASYNC110  # gRPC offers nothing to wait for
        await asyncio.sleep(0.001)


def _is_compiled(task: asyncio.Task[Any]) -> bool:
    # gRPC does not name its tasks, but it is written in Cython, whose coroutines have their own type.
    return not isinstance(task.get_coro(), types.CoroutineType)
