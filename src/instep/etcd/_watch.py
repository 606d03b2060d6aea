"""A watch: every change of a range of keys, once and in order, across broken streams."""

from __future__ import annotations

import asyncio
import contextlib
import random
from types import TracebackType
from typing import Any, Self

from instep.errors import Compacted, EtcdDenied, EtcdError, EtcdUnavailable, HistoryChanged
from instep.etcd import _failures, _wire
from instep.etcd._connection import Connection
from instep.etcd._cursor import Cursor
from instep.etcd._encoding import decode_key
from instep.etcd._failures import Kind
from instep.etcd._grpc import aio
from instep.etcd._pool import was_cancelled
from instep.etcd._stream import Stream, StreamBroken
from instep.etcd._transport import Transport
from instep.etcd._types import KeyValue, WatchBatch

PROBE_S = 1.0
SILENCE_S = 2.5
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_GRPC_ERRORS = (aio.AioRpcError, StreamBroken)


class Watch:
    """Made by `Client.watch`. Entering it opens a stream; iterating it returns batches of whole revisions.

    Promise: every event with a revision from the start on (from now: above `created_revision`) is delivered
    once, in order. A broken stream is replaced without end; a frozen server is noticed `probe_s` +
    `silence_s` after its last word while someone waits for a batch. Limit: history that etcd compacts while
    the watch is behind is gone, and the watch ends with Compacted. It ends with EtcdDenied when etcd
    withdraws the permission, and at its first connection with EtcdUnavailable when no endpoint answers in the
    client's time. It ends with HistoryChanged (a Compacted) when etcd was restored from a backup, emptied or
    replaced; a stream that is made again begins with what was delivered last, to see that. One consumer at a
    time.
    """

    def __init__(
        self,
        transport: Transport,
        key_range: tuple[bytes, bytes],
        start_revision: int,
        *,
        probe_s: float,
        silence_s: float,
        anchor: KeyValue | None = None,
        needs_anchor: bool = False,
        history_changes: int | None = None,
    ) -> None:
        self._transport = transport
        self._range = key_range
        self._cursor = Cursor(start_revision, anchor)
        self._needs_anchor = needs_anchor
        self._history = transport.history
        self._changes = self._history.changes if history_changes is None else history_changes
        self._probe_s = probe_s
        self._silence_s = silence_s
        self._stream: Stream | None = None
        self._closed = False
        self._denials = 0
        self._failed_in_a_row = 0
        self.resumes = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "streaming" if self._stream else "not connected"
        return f"Watch({decode_key(self._range[0])}, {state}, next_revision={self.next_revision})"

    @property
    def created_revision(self) -> int:
        """The revision of the store when the first stream was made; 0 before `async with`."""
        return self._cursor.created_revision

    @property
    def next_revision(self) -> int:
        """The lowest revision that may still be delivered: a new watch from here continues exactly."""
        return self._cursor.next_revision

    @property
    def connected(self) -> bool:
        """Whether the watch has a stream now."""
        return self._stream is not None

    @property
    def endpoint(self) -> str | None:
        """The endpoint of its stream; None while it has none."""
        return None if self._stream is None else str(self._stream.connection.endpoint)

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(self._transport.timeout_s):
                await self._connect(ride_out=False)
        except TimeoutError:
            raise self._unreachable() from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        """The next batch. Cancelling the wait loses nothing."""
        while not self._closed:
            self._check_history()
            if self._stream is None:
                await self._connect(ride_out=True)
                continue
            try:
                response = await self._stream.receive()
            except StreamBroken as broken:
                await self._drop(broken)
                continue
            if response.canceled:
                await self._on_canceled(response)
                continue
            batch = self._cursor.feed(response)
            if response.header.revision < self._cursor.next_revision - 1:
                await self._compare_revisions()
            self._check_history()
            if batch is not None:
                return batch
        raise StopAsyncIteration

    async def close(self) -> None:
        """Ends the watch; a waiting consumer gets StopAsyncIteration."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _connect(self, *, ride_out: bool) -> None:
        """Opens a stream, trying endpoints without end. `ride_out`: retries a refused handshake."""
        while not self._closed:
            with self._transport.pool.connection() as connection:
                if await self._connect_once(connection, ride_out):
                    return
            await self._pause()

    def _check_history(self) -> None:
        if self._cursor.proven and self._history.changes == self._changes:
            self._history.changed(self._cursor.changed)
        reason = self._history.reason if self._history.changes != self._changes else self._cursor.changed
        if reason:
            raise HistoryChanged(
                f"etcd holds another history than the watch of {decode_key(self._range[0])} has followed: {reason}. It "
                "was restored from a backup, emptied or replaced: list again, and trust nothing that was read before.",
                compact_revision=0,
            )

    async def _compare_revisions(self) -> None:
        """This member is behind what was seen. It may lag; a linearizable read decides."""
        request = _wire.RangeRequest(key=self._range[0], range_end=self._range[1], limit=1, keys_only=True)
        with contextlib.suppress(EtcdError):
            await self._transport.unary(_wire.RANGE, request, self._subject, repeatable=True)

    async def _connect_once(self, connection: Connection, ride_out: bool) -> bool:
        stream: Stream | None = None
        sent = self._history.now()
        try:
            await self._authenticate_first(connection)
            metadata = self._transport.stream_metadata()
            stream = Stream(connection, metadata, probe_s=self._probe_s, silence_s=self._silence_s)
            response = await stream.open(self._request(), self._silence_s)
            if not response.canceled:
                self._history.heard(response.header, sent, linearizable=False)
                self._on_created(stream, response)
                return True
            await self._on_canceled(response)
        except _GRPC_ERRORS as error:
            await self._on_failed_open(connection, error, ride_out)
        except (aio.UsageError, asyncio.CancelledError) as error:
            if not self._closed:  # otherwise the client was closed, and with it this watch
                self._transport.pool.raise_if_closed(error)
                raise
            if was_cancelled():
                raise
        finally:
            if stream is not None and stream is not self._stream:
                await stream.close()
        return False

    async def _authenticate_first(self, connection: Connection) -> None:
        if self._transport.auth.needed:
            await self._transport.auth.renew(connection, 0, self._transport.timeout_s)

    def _on_created(self, stream: Stream, response: Any) -> None:
        if self._closed:
            return
        if self._cursor.created_revision and self._needs_anchor and not self._cursor.has_anchor:
            self._cursor.changed = "nothing shows that it is the same as before the connection broke"
        if self._cursor.created_revision:
            self.resumes += 1
            self._transport.watch_resumes += 1
        self._cursor.created(response.header.revision)
        self._stream = stream
        self._transport.linked = True
        self._denials = self._failed_in_a_row = 0

    def _request(self) -> Any:
        start, end = self._range
        create = _wire.WatchCreateRequest(
            key=start, range_end=end, start_revision=self._cursor.start_revision, fragment=True
        )
        return _wire.WatchRequest(create_request=create)

    async def _on_failed_open(self, connection: Any, error: BaseException, ride_out: bool) -> None:
        rpc_error = error if isinstance(error, aio.AioRpcError) else None
        broken = error if isinstance(error, StreamBroken) else StreamBroken(error=rpc_error)
        self._transport.failed(connection, suspect=broken.silent, error=broken.error)
        rpc_error = broken.error
        if rpc_error is None:
            return
        kind = _failures.kind_of(rpc_error)
        if kind is Kind.TOKEN or (kind is Kind.DENIED and "permission denied" in _failures.details_of(rpc_error)):
            await self._on_refused_token(_failures.details_of(rpc_error))
        elif kind is Kind.DENIED:
            raise self._transport.refusal(rpc_error, connection, self._subject)
        elif not ride_out:
            reason = await self._transport.denial(connection, rpc_error, self._transport.timeout_s)
            if reason is not None and self._failed_in_a_row + 1 >= len(self._transport.pool):
                raise EtcdDenied(reason, code=_failures.code_of(rpc_error))

    async def _drop(self, broken: StreamBroken) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        if not stream.connection.retired and not broken.mute:
            self._transport.failed(stream.connection, suspect=broken.silent, error=broken.error)
        await stream.close()

    async def _on_canceled(self, response: Any) -> None:
        """Handles the end of the watch by etcd: final if its history is gone or access is denied."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.close()
        if response.compact_revision:
            raise Compacted(
                f"etcd has compacted the history that the watch of {decode_key(self._range[0])} needs (revision "
                f"{self._cursor.next_revision}, oldest left {response.compact_revision}): list again, then watch.",
                compact_revision=response.compact_revision,
            )
        if _failures.classify("", response.cancel_reason) in (Kind.TOKEN, Kind.DENIED):
            await self._on_refused_token(response.cancel_reason)

    async def _on_refused_token(self, reason: str) -> None:
        """Whether access is denied: etcd reports "permission denied" for an expired token too, so only a new token
        counts."""
        auth = self._transport.auth
        self._denials += 1
        connection = self._transport.pool.connection()
        if auth.user is None or self._denials > 1:
            code = "UNAUTHENTICATED" if "token" in reason else "PERMISSION_DENIED"
            raise _failures.refusal(
                code, reason, endpoint=str(connection.endpoint), subject=self._subject, user=auth.user
            )
        try:
            with connection:
                await auth.renew(connection, auth.generation, self._transport.timeout_s)
        except aio.AioRpcError as error:
            if _failures.kind_of(error) is Kind.DENIED:
                raise self._transport.refusal(error, connection, self._subject) from error
            self._denials = 0
            self._transport.failed(connection, suspect=False)

    async def _pause(self) -> None:
        self._failed_in_a_row += 1
        passes = self._failed_in_a_row // len(self._transport.pool)
        if passes:
            longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(passes, 10))
            await asyncio.sleep(longest_s * random.uniform(0.5, 1.0))

    @property
    def _subject(self) -> str:
        return f"watch {decode_key(self._range[0])}"

    def _unreachable(self) -> EtcdError:
        transport = self._transport
        places = ", ".join(map(str, transport.pool.endpoints))
        return EtcdUnavailable(
            f"etcd at {places}: no answer within {transport.timeout_s:.3g} s; check that etcd runs there and that the "
            "endpoints are right.",
            code="UNAVAILABLE",
        )
