"""The node's registrations in etcd: one key a worker, on the node's lease."""

from __future__ import annotations

import asyncio

from instep.agent.space import Space
from instep.agent.worker import LocalWorker
from instep.agent.workers import Workers
from instep.coordination.keys import Keys
from instep.coordination.outage import Outage
from instep.coordination.session import Session
from instep.errors import EtcdFull, EtcdUnavailable, LeaseLost
from instep.etcd import Client, Compare, Op

RETRY_S = 0.2
FULL_RETRY_S = 1.0
BATCH = 50


class Registry:
    """Promise: a worker that is here is registered while the session has a lease; one that has gone is not, from the
    moment its removal has been written. The lock keeps a late registration from undoing a removal."""

    def __init__(self, client: Client, keys: Keys, session: Session, workers: Workers, space: Space) -> None:
        self._client = client
        self._keys = keys
        self._session = session
        self._workers = workers
        self._space = space
        self._lock = asyncio.Lock()
        self._outage = Outage("the workers cannot be registered yet")

    def __repr__(self) -> str:
        return f"Registry({self._workers!r}, {self._outage!r})"

    async def register(self, worker: LocalWorker) -> None:
        """Registers one worker; without a lease this waits for `register_all`, which a new lease brings."""
        await self._write([worker])

    async def register_all(self) -> None:
        everyone = list(self._workers)
        for start in range(0, len(everyone), BATCH):
            await self._write(everyone[start : start + BATCH])

    async def forget(self, worker: LocalWorker) -> None:
        while True:
            async with self._lock:
                try:
                    await self._client.delete(self._keys.member(worker.rank, worker.incarnation))
                    return
                except EtcdUnavailable:
                    pass
            await asyncio.sleep(RETRY_S)

    async def _write(self, workers: list[LocalWorker]) -> None:
        """Until it is done or there is nothing to do: no lease, or nobody is here any more. Raises EtcdDenied."""
        while True:
            async with self._lock:
                lease_id = self._session.lease_id
                here = [worker for worker in workers if worker in list(self._workers)]
                if not lease_id or not here or await self._attempt(here, lease_id):
                    return
            await asyncio.sleep(FULL_RETRY_S if self._space.problem else RETRY_S)

    async def _attempt(self, workers: list[LocalWorker], lease_id: int) -> bool:
        try:
            for schema in {worker.schema.digest: worker.schema for worker in workers}.values():
                key = self._keys.schema_of(schema.digest)
                await self._client.txn([Compare.absent(key)], [Op.put(key, schema.encode())])
            puts = [
                Op.put(self._keys.member(worker.rank, worker.incarnation), worker.record().encode(), lease=lease_id)
                for worker in workers
            ]
            await self._client.txn([], puts)
        except (EtcdUnavailable, EtcdFull) as error:
            self._outage.met(error)
            self._space.refused(error)
            return False
        except LeaseLost:
            return True  # the next lease registers everybody
        self._outage.over()
        self._space.written()
        return True
