"""One watch stream on one connection, and whether its server still answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from instep.etcd import _wire
from instep.etcd._auth import Metadata
from instep.etcd._connection import Connection
from instep.etcd._grpc import EOF, aio
from instep.tasks import Background


class StreamBroken(Exception):  # never leaves the package
    """The stream has ended. `silent`: etcd stopped answering; `mute`: it answers calls, but no request on this stream;
    `error`: gRPC's error, if any."""

    def __init__(self, *, silent: bool = False, mute: bool = False, error: aio.AioRpcError | None = None) -> None:
        super().__init__(str(error))
        self.silent = silent
        self.mute = mute
        self.error = error


class Stream:
    """Requests progress every `probe_s` while waiting, and gives up `silence_s` after an unanswered request.

    The request checks liveness only: the revision in its answer means nothing to a watch that is catching up.
    etcd's grpc-proxy does not answer it. Before the stream is given up, a call is therefore made too: if it is
    answered, the server works and only the stream is replaced.
    """

    def __init__(self, connection: Connection, metadata: Metadata, *, probe_s: float, silence_s: float) -> None:
        self.connection = connection
        self._probe_s = probe_s
        self._silence_s = silence_s
        self._metadata = metadata
        self._asked_at: float | None = None
        self._next_probe_at = time.monotonic() + probe_s
        self._tasks = Background("a watch stream")
        self._reading: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[Any] | None = None
        self._calling: asyncio.Task[None] | None = None
        self._call = connection.watch(metadata=metadata)
        connection.acquire()

    async def open(self, request: Any, limit_s: float) -> Any:
        """Sends the create request and returns the first response, within `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                await self._call.write(request)
                response = await self._call.read()
        except TimeoutError:
            raise StreamBroken(silent=True) from None
        except aio.AioRpcError as error:
            raise StreamBroken(error=error) from error
        except asyncio.InvalidStateError:  # written to a call that has ended: the read has the reason
            raise await self._end() from None
        if response is EOF:
            raise StreamBroken
        self._heard(response)
        return response

    async def receive(self) -> Any:
        """The next response. Raises StreamBroken. May be cancelled without losing a response."""
        while not self.connection.retired:
            reading = self._reading
            if reading is None:
                reading = self._reading = self._tasks.start(self._call.read(), awaited=True)
            pause_s = max(0.0, self._next_probe_at - time.monotonic())
            done, _ = await asyncio.wait({reading}, timeout=pause_s)
            if done:
                self._reading = None
                return self._outcome(reading)
            self._probe()
        raise StreamBroken

    def _outcome(self, task: asyncio.Task[Any]) -> Any:
        if task.cancelled():
            raise StreamBroken
        error = task.exception()
        if error is not None:
            raise StreamBroken(error=error if isinstance(error, aio.AioRpcError) else None) from error
        if task.result() is EOF:
            raise StreamBroken
        self._heard(task.result())
        return task.result()

    def _heard(self, response: Any) -> None:
        self._asked_at = None
        self._next_probe_at = time.monotonic() + self._probe_s
        self.connection.heard(response, led=False)

    def _probe(self) -> None:
        now = time.monotonic()
        half_s = self._silence_s / 2
        waited_s = 0.0 if self._asked_at is None else now - self._asked_at
        if waited_s >= self._silence_s:
            mute = now - self.connection.heard_at < half_s
            raise StreamBroken(silent=not mute, mute=mute)
        if waited_s >= half_s and (self._calling is None or self._calling.done()):
            self._calling = self._tasks.start(self._call_server(half_s))
        self._next_probe_at = now + min(self._probe_s, half_s / 2)
        if self._asked_at is None:
            self._asked_at = now
        if self._writing is None or self._writing.done():
            # Not awaited: a cancelled write would end the stream, and its failure shows as silence anyway.
            self._writing = self._tasks.start(self._ask())

    async def _call_server(self, limit_s: float) -> None:
        with contextlib.suppress(aio.UsageError):  # closed in the meantime
            await self.connection.answers(self._metadata, limit_s)

    async def _ask(self) -> None:
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(_wire.WatchRequest(progress_request=_wire.WatchProgressRequest()))

    async def _end(self) -> StreamBroken:
        try:
            await self._call.read()
        except aio.AioRpcError as error:
            return StreamBroken(error=error)
        return StreamBroken()

    async def close(self) -> None:
        self._call.cancel()
        self._reading = self._writing = None
        await self._tasks.close()
        await self._call.code()
        self.connection.release()
