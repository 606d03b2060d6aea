"""One gRPC channel to one endpoint, and what is known of its server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from instep.etcd import _wire
from instep.etcd._endpoints import Endpoint
from instep.etcd._grpc import EOF, aio, grpc, rpc_error

# A connection on which etcd answered this recently is not the cause of an unanswered call.
_FRESH_S = 1.5
# A key that does not exist: only the answer to the read counts.
_PROBE = _wire.RangeRequest(key=b"\0", keys_only=True)


class Connection:
    """One gRPC channel to one endpoint. Closes once it is retired and its last user has released it."""

    def __init__(
        self,
        index: int,
        endpoint: Endpoint,
        channel: aio.Channel,
        on_idle: Callable[[Connection], None],
        *,
        files_generation: int = 0,
    ) -> None:
        self.index = index
        self.files_generation = files_generation
        self.endpoint = endpoint
        self.channel = channel
        self.proven = False
        self.retired = False
        self.heard_at = 0.0
        self.term = 0
        self._made_at = time.monotonic()
        self._users = 0
        self._on_idle = on_idle
        self.calls: dict[_wire.Method, Any] = {
            m: channel.unary_unary(m.path, request_serializer=m.serialize, response_deserializer=m.deserialize)
            for m in _wire.UNARY
        }
        self.calls[_wire.LEASE_KEEPALIVE] = self._keepalive
        watch = _wire.WATCH
        self.watch: Any = channel.stream_stream(
            watch.path, request_serializer=watch.serialize, response_deserializer=watch.deserialize
        )

    def __repr__(self) -> str:
        return f"Connection({self.endpoint}, proven={self.proven}, retired={self.retired}, users={self._users})"

    def __enter__(self) -> Self:
        """Keeps it open while in use, even if it is retired in the meantime."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

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

    def heard(self, reply: Any, *, led: bool = True) -> None:
        """Records an answer of etcd and the term of its leader. `led`: the answer needed a leader."""
        self.proven = self.proven or led
        self.heard_at = time.monotonic()
        if reply is not None:
            self.term = reply.header.raft_term

    @property
    def fresh(self) -> bool:
        """Whether etcd answered on it a moment ago; a watch makes it answer every second."""
        return self.proven and self.heard_lately

    @property
    def heard_lately(self) -> bool:
        return time.monotonic() - self.heard_at < _FRESH_S

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._made_at

    @property
    def connected(self) -> bool:
        """Whether its channel has a connection to a server now."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    async def _keepalive(self, request: Any, *, timeout: float, metadata: Any) -> Any:
        """Renews a lease with a stream that stays open until it is answered: etcd's grpc-proxy answers no other."""
        method = _wire.LEASE_KEEPALIVE
        stub: Any = self.channel.stream_stream(
            method.path, request_serializer=method.serialize, response_deserializer=method.deserialize
        )
        call = stub(timeout=timeout, metadata=metadata)
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already: the read has the reason
                await call.write(request)
            reply = await call.read()
        finally:
            call.cancel()
        if reply is EOF:
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, "the stream was closed unanswered")
        return reply

    async def answers(self, metadata: Any, limit_s: float) -> bool:
        """Whether the server answers within `limit_s` and has a leader; a refusal is an answer too.

        It sends a read that needs the leader: a member that has not noticed that its leader is gone loses a
        write without any error.
        """
        try:
            reply = await self.calls[_wire.RANGE](_PROBE, timeout=limit_s, metadata=metadata)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return False
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return True  # the call itself then fails at once with the reason
            self.heard(None)
            return True
        self.heard(reply)
        return True

    async def ready(self, limit_s: float) -> bool:
        """Whether the connection is established within `limit_s`. Sends no request."""
        try:
            async with asyncio.timeout(limit_s):
                state = self.channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        return True  # the call itself then fails at once, unsent, with the reason
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return True
