"""Writers while etcd is broken: numbers that must each exist once, and registers that must stay linearizable."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fault_calls import CallTimes

from instep.errors import EtcdError, EtcdUnavailable
from instep.etcd import Client, Compare, Op
from instep.testing.checkers import History, Reply

T = TypeVar("T")

_AGAIN_S = 0.05
# Fewer operations a second make a history that is quicker to check.
_REST_S = 0.004


class Numbers:
    """Creates `prefix`00000, 00001, ... in order, each exactly once, whatever happens to a reply.

    A write with an unknown outcome is settled by a read and repeated only as a create, which a late arrival of the
    first one makes fail.
    """

    def __init__(
        self,
        client: Client,
        prefix: str,
        times: CallTimes,
        *,
        timeout_s: float,
        value: str = "",
        rest_s: float = 0.0,
    ) -> None:
        self._client = client
        self._rest_s = rest_s
        self._prefix = prefix
        self._times = times
        self._timeout_s = timeout_s
        self._value = value
        self._stopping = False
        self.written = 0
        self.unknown = 0
        self.failed = 0

    def key(self, number: int) -> str:
        return f"{self._prefix}{number:05}"

    def stop(self) -> None:
        """Let `write` end with the number that it is at, which is then settled."""
        self._stopping = True

    async def write(self, count: int | None = None) -> None:
        """Writes this many more, or until `stop()`."""
        numbers = itertools.count(self.written) if count is None else range(self.written, self.written + count)
        for number in numbers:
            if self._stopping:
                return
            await self._create(self.key(number))
            self.written = number + 1
            await asyncio.sleep(self._rest_s)  # so many writes a second are enough

    async def _create(self, key: str) -> None:
        while True:
            if await self._created(key):
                return
            await asyncio.sleep(_AGAIN_S)  # a call may fail at once

    async def _created(self, key: str) -> bool:
        try:
            await self._timed(
                f"create {key}",
                lambda limit_s: self._client.txn([Compare.absent(key)], [Op.put(key, self._value)], timeout_s=limit_s),
            )
        except EtcdUnavailable as error:
            self.failed += 1
            if not error.applied_unknown:
                return False
            self.unknown += 1
            return await self._is_there(key)
        return True  # or it existed already: an earlier attempt whose reply was lost

    async def _is_there(self, key: str) -> bool:
        try:
            return await self._timed(f"get {key}", lambda limit_s: self._client.get(key, timeout_s=limit_s)) is not None
        except EtcdUnavailable:
            return False

    async def _timed(self, subject: str, call: Callable[[float], Awaitable[T]]) -> T:
        return await self._times.timed(subject, self._timeout_s, call)


class Registers:
    """Clients that get, put and compare-and-put a few keys at once, each call recorded in a history."""

    def __init__(
        self,
        client: Client,
        prefix: str,
        history: History,
        times: CallTimes,
        *,
        timeout_s: float,
        keys: int = 4,
        lanes: int = 3,
        seed: int = 1,
        rest_s: float = 0.0,
    ) -> None:
        self._client = client
        self._rest_s = max(rest_s, _REST_S)
        self._keys = [f"{prefix}{number}" for number in range(keys)]
        self._history = history
        self._times = times
        self._timeout_s = timeout_s
        self._lanes = lanes
        self._seed = seed
        self._seen: dict[str, int] = {}
        self.done = 0
        self.failed = 0

    async def run(self) -> None:
        """Runs until cancelled. A cancelled call has an unknown outcome."""
        async with asyncio.TaskGroup() as lanes:
            for number in range(self._lanes):
                lanes.create_task(self._lane(f"lane {number}", random.Random(self._seed * 1000 + number)))

    async def _lane(self, name: str, chance: random.Random) -> None:
        count = 0
        while True:
            key = chance.choice(self._keys)
            call = chance.choice((self._get, self._put, self._put, self._compare_and_put))
            count += 1
            try:
                await self._times.timed(f"{name} at {key}", self._timeout_s, _Bound(call, name, key, f"{name}/{count}"))
                self.done += 1
            except EtcdError:
                self.failed += 1
                await asyncio.sleep(_AGAIN_S)  # a call may fail at once
            await asyncio.sleep(chance.uniform(0, 2 * self._rest_s))  # lanes must meet in each order

    async def _get(self, name: str, key: str, _value: str, limit_s: float) -> None:
        with self._history.call(name, "get", key) as op:
            found = await self._client.get(key, timeout_s=limit_s)
            op.result = Reply.absent() if found is None else Reply.found(found.text, found.mod_revision)
        self._seen[key] = 0 if found is None else found.mod_revision

    async def _put(self, name: str, key: str, value: str, limit_s: float) -> None:
        with self._history.call(name, "put", key, value) as op:
            op.result = Reply.wrote(await self._client.put(key, value, timeout_s=limit_s))

    async def _compare_and_put(self, name: str, key: str, value: str, limit_s: float) -> None:
        seen = self._seen.get(key, 0)
        with self._history.call(name, "cas_revision", key, seen, value) as op:
            done = await self._client.txn(
                [Compare.mod_revision(key, "==", seen)], [Op.put(key, value)], timeout_s=limit_s
            )
            op.result = Reply.wrote(done.revision) if done.succeeded else Reply.refused()
        if done.succeeded:
            self._seen[key] = done.revision


_Step = Callable[[str, str, str, float], Awaitable[None]]


class _Bound:
    """One step with all but its timeout given."""

    def __init__(self, step: _Step, name: str, key: str, value: str) -> None:
        self._step = step
        self._arguments = (name, key, value)

    async def __call__(self, limit_s: float) -> None:
        await self._step(*self._arguments, limit_s)
