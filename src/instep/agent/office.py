"""The node's part in leading the run: it stands in the election and serves the terms it wins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable

from instep.agent.workers import Workers
from instep.coordination.election import Election
from instep.coordination.fence import Fence
from instep.coordination.keys import Keys
from instep.coordination.leadership import Leadership, Pace, TryOut
from instep.coordination.mirror import cancelled
from instep.coordination.outage import Outage
from instep.coordination.records import Leader
from instep.coordination.session import Session
from instep.coordination.state import RunState
from instep.coordination.transactions import proclaim
from instep.errors import EtcdError, EtcdUnavailable
from instep.etcd import Client

log = logging.getLogger("instep")

RETRY_S = 0.2
FAILED_TERM_S = 2.0


class Office:
    """A candidate names the worker that would lead, the lowest rank on the node; when that worker goes, its key is
    replaced in one txn: a new key, a new token, and another may lead at once."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        session: Session,
        state: RunState,
        workers: Workers,
        node: str,
        *,
        pace: Callable[[], Pace],
        try_out: TryOut,
        ttl_s: float,
    ) -> None:
        self._client = client
        self._keys = keys
        self._session = session
        self._state = state
        self._workers = workers
        self._node = node
        self._pace = pace
        self._try_out = try_out
        self._ttl_s = ttl_s
        self._election = Election(client, session, keys.election)
        self._lock = asyncio.Lock()
        self._leadership: Leadership | None = None
        self._outage = Outage("the candidate key cannot be written")
        self._ended = Outage("this term of office ended")

    def __repr__(self) -> str:
        return f"Office({self._leadership or self._election!r})"

    def wake(self) -> None:
        """The state has changed: a leader looks again."""
        if self._leadership is not None:
            self._leadership.wake()

    async def stand(self) -> None:
        """Makes our candidate key what it should be for the workers that are here now."""
        async with self._lock:
            while True:
                worker, lease_id = self._workers.would_lead(), self._session.lease_id
                try:
                    if worker is None:
                        await self._election.resign()
                    elif lease_id:
                        value = {"node": self._node, "rank": worker.rank, "incarnation": worker.incarnation}
                        await self._election.stand(worker.incarnation, json.dumps(value))
                    self._outage.over()
                    return
                except EtcdUnavailable as error:
                    self._outage.met(error)
                except EtcdError as error:
                    self._outage.met(error)
                    return
                await asyncio.sleep(RETRY_S)

    async def resign(self) -> None:
        """Lets the next candidate lead at once; if etcd is away, the lease's end does the same later."""
        with contextlib.suppress(EtcdError):
            await self._election.resign()

    async def run(self) -> None:
        """Campaigns and leads, over and over, until cancelled."""
        while True:
            fence = await self._election.elected()
            try:
                await self._serve(fence)
            except EtcdError as error:
                self._ended.met(error)
                await asyncio.sleep(RETRY_S)
            except Exception:  # an error in deciding ends a term, not the agent and its workers
                log.exception("this term of office ended with an error")
                await asyncio.sleep(FAILED_TERM_S)

    async def _serve(self, fence: Fence) -> None:
        worker = self._workers.would_lead()
        if worker is None or not await self._proclaim(fence):
            await asyncio.sleep(RETRY_S)
            return
        self._ended.over()
        log.info("leading with token %d", fence.token)
        self._leadership = Leadership(
            self._client,
            self._keys,
            fence,
            self._state,
            pace=self._pace,
            try_out=self._try_out,
            ttl_s=self._ttl_s,
        )
        term = asyncio.create_task(self._leadership.run())
        over = asyncio.create_task(self._election.lost(fence))
        try:
            done, _ = await asyncio.wait([term, over], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._leadership = None
            await cancelled(term, over)
            log.info("the term with token %d is over", fence.token)

    async def _proclaim(self, fence: Fence) -> bool:
        candidate = await self._client.get(fence.key)
        if candidate is None or candidate.create_revision != fence.token:
            return False
        named = json.loads(candidate.value)
        host = next((w.member.host for w in self._workers if w.incarnation == named["incarnation"]), "")
        leader = Leader(**named, candidate=fence.key, token=fence.token, host=host)
        txn = proclaim(self._keys, leader)
        result = await self._client.txn(txn.compares, txn.then)
        if result.succeeded:
            await self._state.mirror.wait_listed()
        return result.succeeded
