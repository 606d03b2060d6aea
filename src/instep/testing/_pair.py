"""One connection through a proxy: the client's socket, the server's, and the data queued between them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol, cast

from instep.tasks import Background
from instep.testing._flow import Direction, End, Flow, Item

_DIAL_TIMEOUT_S = 10.0


class LinkRules(Protocol):
    """Decisions that a pair gets from its line, in the loop's thread."""

    def is_held(self, way: Direction) -> bool: ...

    def arrived(self, pair: Pair, way: Direction, data: bytes) -> tuple[bytes, float]: ...

    def ended(self, pair: Pair) -> None: ...


class Side(asyncio.Protocol):
    """One of the two sockets; its data goes in direction `way`."""

    def __init__(self, way: Direction, on_made: Callable[[Side], None]) -> None:
        self.way = way
        self.pair: Pair | None = None
        self.transport: asyncio.Transport | None = None
        self.blocked = False
        self._on_made = on_made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        if self.pair is not None:
            self.pair.came(self.way, data)

    def eof_received(self) -> bool:
        if self.pair is not None:
            self.pair.came(self.way, End.CLOSED)
        return True  # the other direction stays open

    def connection_lost(self, error: Exception | None) -> None:
        if self.pair is not None:
            self.pair.came(self.way, End.RESET)

    def pause_writing(self) -> None:
        self.blocked = True
        if self.pair is not None:
            self.pair.pump()

    def resume_writing(self) -> None:
        self.blocked = False
        if self.pair is not None:
            self.pair.pump()

    def read(self, wanted: bool) -> None:
        """Reads from the socket, or leaves its data in the kernel."""
        if self.transport is None or self.transport.is_closing():
            return
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def send(self, item: Item) -> None:
        """Sends data, an end or a reset of the other side."""
        if self.transport is None or self.transport.is_closing():
            return
        if isinstance(item, bytes):
            self.transport.write(item)
        elif item is End.CLOSED:
            self.transport.write_eof()
        else:
            self.reset()

    def reset(self) -> None:
        """Closes the socket with a reset."""
        if self.transport is None:
            return
        with contextlib.suppress(OSError):
            plain = self.transport.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class Pair:
    """Connects to the server for a client as soon as data may pass up, and passes data in both directions."""

    def __init__(self, rules: LinkRules, client: Side, target: tuple[str, int]) -> None:
        self._rules = rules
        self._target = target
        self._client = client
        self._server = Side("down", self._connected)
        self._flows: dict[Direction, Flow] = {"up": Flow(), "down": Flow()}
        self._closed: set[Direction] = set()
        self._timers: dict[Direction, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        self._dialling: asyncio.Task[Any] | None = None
        self.over = False
        client.pair = self._server.pair = self

    def pump(self) -> None:
        """Passes what may pass now. Called whenever that may have changed."""
        self._pump("up", self._client, self._server)
        self._pump("down", self._server, self._client)

    def came(self, way: Direction, item: Item) -> None:
        """Handles data, or the end, of one side."""
        if self.over:
            return
        wait_s = 0.0
        if isinstance(item, bytes):
            item, wait_s = self._rules.arrived(self, way, item)
        if item or isinstance(item, End):
            self._flows[way].put(item, self._loop.time() + wait_s if wait_s else 0.0)
        self.pump()

    def reset(self) -> None:
        """Closes both sockets with a reset and drops queued data."""
        self._end(Side.reset)

    # -- inside ----------------------------------------------------------------------------------------------

    def _pump(self, way: Direction, source: Side, sink: Side) -> None:
        if self.over:
            return
        held, flow = self._rules.is_held(way), self._flows[way]
        if way == "up" and not held:
            self._dial()
        if not held and sink.transport is not None:
            self._pass_on(way, flow, sink)
        if not self.over:
            source.read(not held and not flow.full and not sink.blocked and sink.transport is not None)

    def _pass_on(self, way: Direction, flow: Flow, sink: Side) -> None:
        while not sink.blocked and (item := flow.take(self._loop.time())) is not None:
            if item is End.RESET:
                self._end(Side.reset)
                return
            sink.send(item)
            if item is End.CLOSED:
                self._closed.add(way)
        if len(self._closed) == 2:
            self._end(Side.close)
        elif flow.next_due is not None and way not in self._timers:
            self._timers[way] = self._loop.call_at(flow.next_due, self._due, way)

    def _due(self, way: Direction) -> None:
        del self._timers[way]
        self.pump()

    def _dial(self) -> None:
        if self._dialling is None:
            self._dialling = Background("a connection from a proxy").start(self._dial_server())

    async def _dial_server(self) -> None:
        try:
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                await self._loop.create_connection(lambda: self._server, *self._target)
        except OSError:  # TimeoutError is one
            self.reset()

    def _connected(self, server: Side) -> None:
        if self.over:
            server.reset()
        else:
            self.pump()

    def _end(self, how: Callable[[Side], None]) -> None:
        if self.over:
            return
        self.over = True
        for timer in self._timers.values():
            timer.cancel()
        if self._dialling is not None and self._server.transport is None:
            self._dialling.cancel()
        for side in (self._client, self._server):
            how(side)
        self._rules.ended(self)
