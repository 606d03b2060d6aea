"""The node's registrations in etcd: one key a worker, on the node's lease."""

from __future__ import annotations

import asyncio
import logging

from instep.agent.worker import LocalWorker
from instep.agent.workers import Workers
from instep.coordination.keys import Keys
from instep.coordination.session import Session
from instep.errors import EtcdUnavailable, LeaseLost
from instep.etcd import Client, Compare, Op

log = logging.getLogger("instep")

RETRY_S = 0.2
BATCH = 50


class Registry:
    """Promise: a worker that is here is registered while the session has a lease; one that has gone is not, from the
    moment its removal has been written. The lock keeps a late registration from undoing a removal."""

    def __init__(self, client: Client, keys: Keys, session: Session, workers: Workers) -> None:
        self._client = client
        self._keys = keys
        self._session = session
        self._workers = workers
        self._lock = asyncio.Lock()

    async def register(self, worker: LocalWorker) -> None:
        """Registers one worker; without a lease this waits for `register_all`, which a new lease brings."""
        async with self._lock:
            await self._write([worker])

    async def register_all(self) -> None:
        async with self._lock:
            everyone = list(self._workers)
            for start in range(0, len(everyone), BATCH):
                await self._write(everyone[start : start + BATCH])

    async def forget(self, worker: LocalWorker) -> None:
        async with self._lock:
            while True:
                try:
                    await self._client.delete(self._keys.member(worker.rank, worker.incarnation))
                    return
                except EtcdUnavailable:
                    await asyncio.sleep(RETRY_S)

    async def _write(self, workers: list[LocalWorker]) -> None:
        while True:
            lease_id = self._session.lease_id
            here = [worker for worker in workers if worker in list(self._workers)]
            if not lease_id or not here:
                return
            try:
                for schema in {worker.schema.digest: worker.schema for worker in here}.values():
                    key = self._keys.schema_of(schema.digest)
                    await self._client.txn([Compare.absent(key)], [Op.put(key, schema.encode())])
                puts = [
                    Op.put(self._keys.member(worker.rank, worker.incarnation), worker.record().encode(), lease=lease_id)
                    for worker in here
                ]
                await self._client.txn([], puts)
                return
            except EtcdUnavailable as error:
                log.warning("the workers cannot be registered yet: %s", error)
            except LeaseLost:
                return  # the next lease registers everybody
            await asyncio.sleep(RETRY_S)
