"""Clients that read and write the same few keys, and record every answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from chaos.timed_calls import TimedCalls
from instep.errors import EtcdError
from instep.etcd import Client, Compare, DeleteResult, Op, PutResult, TxnResult
from instep.testing.checkers import History, Reply

TIMEOUT_S = 2.0
KEYS = 5
ROUND_OPERATIONS = 400
"""After this many operations, a client uses new keys: only short histories of a key can be checked."""


class RegisterClient:
    """One of several clients; pauses about `pause_s` between operations, which bounds the history of an hour."""

    def __init__(
        self, name: str, client: Client, prefix: str, history: History, calls: TimedCalls, *, seed: int, pause_s: float
    ) -> None:
        self.name = name
        self.operations = 0
        self._client = client
        self._prefix = prefix
        self._history = history
        self._calls = calls
        self._chance = random.Random(seed)
        self._pause_s = pause_s
        self._revisions: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"RegisterClient({self.name}, {self.operations} operations)"

    async def run(self) -> None:
        """Runs until cancelled. An operation that is under way then has an unknown outcome."""
        kinds = (self._get, self._put, self._swap, self._create, self._delete)
        while True:
            part = self.operations // ROUND_OPERATIONS
            key = f"{self._prefix}{part}/{self._chance.randrange(KEYS)}"
            (kind,) = self._chance.choices(kinds, (8, 4, 6, 2, 1))
            await self._try(kind, key)
            self.operations += 1
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._pause_s)

    async def _try(self, kind: Callable[[str], Awaitable[None]], key: str) -> None:
        try:
            await self._calls.timed(f"register {self.name}", TIMEOUT_S, kind(key))
        except EtcdError:
            self._revisions.pop(key, None)

    def _value(self) -> str:
        return f"{self.name}-{self.operations}"

    async def _get(self, key: str) -> None:
        async with self._history.call(self.name, "get", key) as op:
            found = await self._client.get(key, timeout_s=TIMEOUT_S)
            op.result = Reply.absent() if found is None else Reply.found(found.text, found.mod_revision)
        self._revisions[key] = 0 if found is None else found.mod_revision

    async def _put(self, key: str) -> None:
        value = self._value()
        async with self._history.call(self.name, "put", key, value) as op:
            revision = await self._client.put(key, value, timeout_s=TIMEOUT_S)
            op.result = Reply.wrote(revision)
        self._revisions[key] = revision

    async def _swap(self, key: str) -> None:
        """Compare-and-put by the mod revision that this client knows, right or outdated; else a plain read."""
        if key not in self._revisions:
            await self._get(key)
            return
        known, value = self._revisions[key], self._value()
        async with self._history.call(self.name, "cas_revision", key, known, value) as op:
            compare = Compare.mod_revision(key, "==", known)
            result = await self._client.txn([compare], [Op.put(key, value)], timeout_s=TIMEOUT_S)
            op.result = self._reply(key, result)

    async def _create(self, key: str) -> None:
        value = self._value()
        async with self._history.call(self.name, "create", key, value) as op:
            result = await self._client.txn([Compare.absent(key)], [Op.put(key, value)], timeout_s=TIMEOUT_S)
            op.result = self._reply(key, result)

    async def _delete(self, key: str) -> None:
        async with self._history.call(self.name, "delete", key) as op:
            result = await self._client.txn([], [Op.delete(key)], timeout_s=TIMEOUT_S)
            deleted = result.results[0]
            assert isinstance(deleted, DeleteResult)
            op.result = Reply.wrote(result.revision) if deleted.deleted else Reply.refused(result.revision)
        self._revisions[key] = 0

    def _reply(self, key: str, result: TxnResult) -> Reply:
        if not result.succeeded:
            self._revisions.pop(key, None)
            return Reply.refused(result.revision)
        assert isinstance(result.results[0], PutResult)
        self._revisions[key] = result.revision
        return Reply.wrote(result.revision)
