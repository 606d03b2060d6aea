"""The node's registrations in etcd, on its lease: its name, and one key a worker."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from instep.agent.context import Component, Context
from instep.agent.name import NodeName, NodeNameTaken
from instep.agent.workers import LocalWorker
from instep.errors import EtcdError, LeaseLost
from instep.etcd import Compare, Op
from instep.outage import Outage
from instep.protocol.records import NodeClaim
from instep.recipes.retry import REGISTER, UNAVAILABLE, Retry

log = logging.getLogger("instep")

REFUSED_S = 0.2
"""Pause after a leader has deleted a schema at the moment of a registration."""
BATCH = 50


class MemberRegistrar(Component):
    """Promise: each connected worker is registered while the session has a lease; after its removal is written, no
    registration of it remains. The lock orders a late registration before the removal.

    Registration starts after the node's name is claimed: nodes with the same name would answer for each other's
    ranks. A node whose name is claimed by another one takes a new name, unless its workers already train under that
    name.
    """

    def __init__(self, context: Context, name: NodeName) -> None:
        super().__init__(context)
        self._name = name
        self._claimed_on = 0
        """The lease that holds the claim."""
        self._taken: NodeNameTaken | None = None
        self._gives_way = asyncio.Event()
        self._lock = asyncio.Lock()
        self._outage = Outage("the workers cannot be registered yet")

    def __repr__(self) -> str:
        return f"MemberRegistrar({self._workers!r}, {self._outage!r})"

    async def register(self, workers: Sequence[LocalWorker]) -> None:
        """Registers these workers. Does nothing without a lease: all workers are registered when there is one."""
        for start in range(0, len(workers), BATCH):
            await self._write(workers[start : start + BATCH])

    async def forget(self, worker: LocalWorker) -> None:
        await Retry(UNAVAILABLE, self._outage).run(lambda: self._delete(worker))

    async def _delete(self, worker: LocalWorker) -> None:
        async with self._lock:
            await self._client.delete(self._keys.member(*worker.id))

    async def wait_name_taken(self) -> None:
        """Raises NodeNameTaken after another node is found to hold the name."""
        await self._gives_way.wait()
        assert self._taken is not None
        raise self._taken

    async def _write(self, workers: Sequence[LocalWorker]) -> None:
        """Retries until it is done, or until there is no lease or none of the workers is here. Raises EtcdDenied."""
        retry = Retry(REGISTER, self._outage)
        while self._taken is None:
            pause_s = REFUSED_S
            async with self._lock:
                lease_id = self._session.lease_id
                here = [worker for worker in workers if worker in list(self._workers)]
                try:
                    if not lease_id or not here or await self._attempt(here, lease_id):
                        return
                except EtcdError as error:
                    self._quota.refused(error)
                    pause_s = retry.pause_s(error)
            await asyncio.sleep(pause_s)

    async def _attempt(self, workers: list[LocalWorker], lease_id: int) -> bool:
        try:
            if self._claimed_on != lease_id:
                await self._claim(lease_id)
            for schema in {worker.schema.digest: worker.schema for worker in workers}.values():
                key = self._keys.schema_of(schema.digest)
                await self._client.txn([Compare.absent(key)], [Op.put(key, schema.encode())])
            puts = [
                Op.put(self._keys.member(*worker.id), worker.record().encode(), lease=lease_id) for worker in workers
            ]
            schemas = {self._keys.schema_of(worker.schema.digest) for worker in workers}
            if not (await self._client.txn([Compare.present(key) for key in schemas], puts)).succeeded:
                return False  # a leader has deleted an unused schema
        except NodeNameTaken as taken:
            self._taken = taken
            self._gives_way.set()
            return True
        except LeaseLost:
            return True  # the next lease registers all workers
        self._outage.over()
        self._quota.written()
        return True

    async def _claim(self, lease_id: int) -> None:
        """Raises NodeNameTaken."""
        key = self._keys.node(self._name.name)
        put = Op.put(key, NodeClaim(claim=self._name.claim, host=os.uname().nodename[:64]).encode(), lease=lease_id)
        result = await self._client.txn([Compare.absent(key)], [put], [Op.get(key)])
        while not result.succeeded:
            (item,) = result.found
            if item is not None:
                self._check(NodeClaim.decode_or_none(item.value))
            guard = Compare.mod_revision(key, "==", item.mod_revision if item is not None else 0)
            result = await self._client.txn([guard], [put], [Op.get(key)])
        self._claimed_on = lease_id

    def _check(self, held: NodeClaim | None) -> None:
        if held is not None and held.claim != self._name.claim:
            text = f"the node on {held.host} has the name {self._name.name} too"
            if not self._name.fixed and not any(worker.view for worker in self._workers):
                raise NodeNameTaken(text)
            log.error("%s: while both are in the run no change can be agreed on; restart the ranks of this node", text)
