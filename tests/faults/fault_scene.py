"""A client at work on servers that are being broken, and the properties that must always hold."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from fault_calls import CallTimes
from fault_verdicts import assert_linearizable, assert_watched
from fault_watching import Follower, history_of
from fault_writers import Numbers, Registers

from async_support import until
from instep.errors import EtcdError
from instep.etcd import Client, KeyValue, LeaseKeeper
from instep.testing.checkers import History

_numbers = itertools.count(1)


class Scene:
    """One client with numbered writes, registers, a watch of all of them, and a lease with a key of its own.

    `async with` it, break the servers, then `finish()`: that checks the watch against etcd's own history, the
    registers for linearizability, every call against its timeout, and the lease unless told otherwise. `rest_s`
    after each write keeps a long scene small.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ttl_s: int = 10,
        timeout_s: float = 5.0,
        call_timeout_s: float = 3.0,
        registers: bool = True,
        value: str = "",
        rest_s: float = 0.0,
        **client_options: Any,
    ) -> None:
        self.client = Client(endpoints, timeout_s=timeout_s, **client_options)
        number = next(_numbers)  # scenes may share servers
        self.root = f"scene-{number}/"
        self.own = f"own-{number}/"
        self.times = CallTimes()
        self.history = History()
        self.numbers = Numbers(
            self.client, f"{self.root}numbers/", self.times, timeout_s=call_timeout_s, value=value, rest_s=rest_s
        )
        self.registers = Registers(
            self.client, f"{self.root}registers/", self.history, self.times, timeout_s=call_timeout_s, rest_s=rest_s
        )
        self._with_registers = registers
        self.follower = Follower(self.client, self.root)
        self.keeper = LeaseKeeper(self.client, ttl_s=ttl_s)
        self._own_created = 0
        self._stack = AsyncExitStack()
        self._writing: asyncio.Task[None] | None = None
        self._operating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.client)
            await stack.enter_async_context(self.follower)
            await stack.enter_async_context(self.keeper)
            self._own_created = await self.client.put(f"{self.own}key", "", lease=self.keeper.lease_id)
            stack.push_async_callback(self._cancel)
            if self._with_registers:
                self._operating = asyncio.create_task(self.registers.run())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def write(self, count: int | None = None) -> asyncio.Task[None]:
        """Write so many numbers, in a task that ends when the last is there; or until `finish()`."""
        self._writing = asyncio.create_task(self.numbers.write(count))
        return self._writing

    async def written(self, number: int, limit_s: float = 60.0) -> None:
        """Wait until so many numbers are written."""
        await until(lambda: self.numbers.written >= number, limit_s)

    async def calls_succeed(self, limit_s: float = 30.0) -> float:
        """Wait until a write goes through, as a user who tries again and again would find; in seconds."""
        return await until(self._written_once, limit_s)

    async def finish(self, *, lease_kept: bool = True, history_kept: bool = True) -> None:
        """Stop writing and check everything; the servers must be reachable again.

        Without `history_kept`, when the servers were compacted, the watch is compared with the numbers that are
        there, each as it was created.
        """
        await self._stop()
        last = await self._until_done(lambda: self.client.put(f"{self.root}end", ""))
        await self.follower.reaches(last)
        numbers = await self._until_done(lambda: self.client.range(f"{self.root}numbers/", timeout_s=20.0))
        assert [kv.key for kv in numbers.kvs] == [self.numbers.key(number) for number in range(self.numbers.written)]
        assert all(kv.version == 1 for kv in numbers.kvs)
        await self._check_watch(numbers.kvs, last, history_kept)
        assert not self.times.overdue, self.times.overdue
        if self._with_registers:
            assert_linearizable(self.history)
        if lease_kept:
            await self.assert_lease_kept()

    async def _check_watch(self, numbers: Sequence[KeyValue], last: int, history_kept: bool) -> None:
        created = [
            (event.kv.key, event.kv.mod_revision)
            for event in self.follower.events
            if event.kv.key.startswith(f"{self.root}numbers/")
        ]
        assert created == [(kv.key, kv.mod_revision) for kv in numbers]
        if history_kept:
            reference = await history_of(self.client, self.root, self.follower.start_revision, last)
            assert_watched(self.follower, self.root, reference, last)

    async def assert_lease_kept(self) -> None:
        own = await self._until_done(lambda: self.client.get(f"{self.own}key"))
        assert own is not None, "etcd has ended the lease"
        assert own.create_revision == self._own_created
        assert self.keeper.valid, "the lease is taken for lost, though etcd holds it"

    async def _written_once(self) -> bool:
        try:
            await self.times.timed(
                "put", 1.0, lambda limit_s: self.client.put(f"{self.own}probe", "", timeout_s=limit_s)
            )
        except EtcdError:
            return False
        return True

    async def _until_done(self, call: Callable[[], Awaitable[Any]], tries: int = 5) -> Any:
        for left in reversed(range(tries)):
            try:
                return await self.times.timed("call", 20.0, lambda _limit_s: call())
            except EtcdError:
                if not left:
                    raise
        raise AssertionError("unreachable")

    async def _stop(self) -> None:
        self.numbers.stop()
        if self._writing is not None:
            async with asyncio.timeout(30.0):
                await self._writing
        await self._cancel()

    async def _cancel(self) -> None:
        for task in (self._writing, self._operating):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._writing = self._operating = None
