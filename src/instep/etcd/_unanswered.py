"""Writes that are never answered: a member passed them to a leader that was already dead."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from instep.etcd import _wire
from instep.etcd._auth import Authenticator
from instep.etcd._connection import Connection
from instep.etcd._grpc import aio, grpc, rpc_error
from instep.etcd._pool import was_cancelled
from instep.tasks import Background

# A write may take this long; then its member is asked whether etcd has changed its leader since.
PATIENCE_S = 0.5
LOOK_EVERY_S = 0.25
_STATUS_S = 1.0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A write that was sent and not answered."""

    call: Any
    connection: Connection
    term: int
    sent_at: float
    doomed: bool = False
    given_up: bool = False


class Unanswered:
    """Ends a write early, with an unknown fate, if etcd has elected another leader since it was sent.

    A member passes a write to its leader once. If that leader is already dead and no member has noticed, the write
    is lost without an error, and its caller waits for its whole timeout (etcd's own is 7 s). Promise: such a write
    ends about 1 s after the election. Limit: a write that the new leader does get, but applies more slowly, ends as
    unknown too, which is correct.
    """

    def __init__(self, auth: Authenticator) -> None:
        self._auth = auth
        self._waiting: set[_Waiting] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._asking = Background("a question whether etcd has changed its leader")

    def __repr__(self) -> str:
        return f"Unanswered({len(self._waiting)} writes)"

    async def answer(self, call: Any, connection: Connection) -> Any:
        """The reply to a call, or gRPC's error."""
        waiting = _Waiting(call, connection, connection.term, time.monotonic())
        self._waiting.add(waiting)
        if self._timer is None:
            self._look_in(PATIENCE_S)
        try:
            return await call
        except asyncio.CancelledError:
            if waiting.given_up and not was_cancelled():
                details = "etcd changed its leader before it answered"
                raise rpc_error(grpc.StatusCode.UNAVAILABLE, details) from None
            raise
        finally:
            self._waiting.discard(waiting)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._asking.close()

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Uses one timer rather than a task for each write: most are answered long before it fires."""
        self._timer = None
        before = time.monotonic() - PATIENCE_S
        late = [waiting for waiting in self._waiting if waiting.sent_at <= before and waiting.term]
        for waiting in late:
            if waiting.doomed:
                waiting.given_up = True
                waiting.call.cancel()
        if late and not self._asking:
            for connection in {waiting.connection for waiting in late}:
                self._asking.start(self._ask(connection))
        if self._waiting:
            self._look_in(LOOK_EVERY_S)

    async def _ask(self, connection: Connection) -> None:
        """Marks the writes that were sent in an earlier term; their answers have until the next check."""
        with connection:
            call = connection.calls[_wire.STATUS]
            try:
                reply = await call(_wire.StatusRequest(), timeout=_STATUS_S, metadata=self._auth.metadata)
            except (aio.AioRpcError, aio.UsageError):
                return
        for waiting in self._waiting:
            if waiting.connection is connection and reply.leader and waiting.term < reply.header.raft_term:
                waiting.doomed = True
