"""The node's part in leading the run: its candidate in the election, and the terms that it wins."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from instep.agent.context import Component, Context
from instep.agent.leadership import DryRunner, Leadership, Pace
from instep.agent.stall import Nomination, nominate
from instep.errors import EtcdDenied, EtcdError
from instep.etcd import Op
from instep.outage import Outage
from instep.protocol.keys import last_part
from instep.protocol.records import CAME_FIRST, Candidate, Epoch, Leader, Resigned, WorkerId
from instep.protocol.transactions import proclaim
from instep.recipes.election import Election
from instep.recipes.fence import Fence
from instep.recipes.queue import in_order
from instep.recipes.retry import SERVICE, UNAVAILABLE, Retry
from instep.recipes.token import make_token, revision_of
from instep.tasks import all_of, first_of

log = logging.getLogger("instep")

NOTE_S: Final = 2.0


NO_WORKER_S = 0.2
"""Pause before the next try, in a term that begins while this node has no worker."""
FAILED_TERM_S = 2.0
ENDS_KEPT = 100


class TermHistory(Component):
    """Promise: a transaction that is guarded by the token proclaims each leader, with the next term number. Limit: the
    reason why the former leader's term ended is recorded only if its agent could write it, or if its node is gone."""

    async def proclaim(self, fence: Fence) -> Leader | None:
        """Proclaims the worker that our candidate names as the leader. None if the term is over already."""
        seen = self._state.leader
        candidate, standing, begun, why = await all_of(
            self._client.get(fence.key),
            self._client.get(self._keys.leader),
            self._client.get(self._keys.epoch),
            self._why(seen),
        )
        named = Candidate.decode_or_none(candidate.value if candidate is not None else None)
        if not fence.is_held(candidate) or named is None:
            return None
        former = Leader.decode_or_none(standing.value if standing is not None else None)
        epoch = Epoch.decode_or_none(begun.value if begun is not None else None)
        token = make_token(epoch.number if epoch is not None else 0, fence.token)
        if former is not None and (former.candidate, former.token) == (fence.key, token):
            return former  # the reply to an earlier attempt was lost
        leader = Leader(
            **named.model_dump(include={"node", "rank", "incarnation"}),
            candidate=fence.key,
            token=token,
            host=next((worker.member.host for worker in self._workers if worker.id == named.worker), ""),
            term=await self._next_term(former),
        )
        known = former is not None and seen is not None and former.token == seen.token
        seen_epoch = begun.mod_revision if begun is not None else 0
        why = why if known else None
        txn = proclaim(self._keys, leader, former, epoch_revision=seen_epoch, at=_now(), why=why)
        result = await self._client.txn(txn.compares, txn.then)
        return leader if result.succeeded else None

    async def note_end(self, fence: Fence, why: str) -> None:
        """Records why the term ended, for the next leader. One attempt: nothing depends on it."""
        note = Resigned(token=fence.token, why=why)
        with contextlib.suppress(EtcdError):
            await self._client.txn([], [Op.put(self._keys.resigned_of(self._node), note.encode())], timeout_s=NOTE_S)

    async def _why(self, former: Leader | None) -> str | None:
        if former is None:
            return None
        resigned, member = await all_of(
            self._client.get(self._keys.resigned_of(former.node)),
            self._client.get(self._keys.member(*former.worker)),
        )
        note = Resigned.decode_or_none(resigned.value if resigned is not None else None)
        return why_ended(former, note, registered=member is not None)

    async def _next_term(self, former: Leader | None) -> int:
        """From the state, or from the history if the state does not have it."""
        if former is not None and former.term:
            return former.term + 1
        listing = await self._client.range(self._keys.terms)
        numbers = (last_part(item.key) for item in listing.kvs)
        return max((int(number) for number in numbers if number.isdecimal()), default=0) + 1


def why_ended(former: Leader, note: Resigned | None, *, registered: bool) -> str | None:
    """How the term of `former` ended: what its agent recorded, or the end of its node's lease. None if neither is
    known."""
    if note is not None and note.token == revision_of(former.token):
        return note.why
    return None if registered else "its node was lost"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Candidacy(Component):
    """A candidate names the worker that would lead. When that worker is gone, or makes no progress for
    `stall_timeout_s` or 20 times its step time, whichever is longer, one transaction replaces the key: the new key has
    a new token and the last place in the queue, and another candidate may lead at once."""

    def __init__(
        self,
        context: Context,
        *,
        pace: Callable[[], Pace],
        dry_runner: DryRunner,
        ttl_s: float,
        stall_timeout_s: float,
        former_lease: int,
        on_denied: Callable[[EtcdDenied], None],
    ) -> None:
        super().__init__(context)
        self._pace = pace
        self._dry_runner = dry_runner
        self._ttl_s = ttl_s
        self._stall_timeout_s = stall_timeout_s
        self._on_denied = on_denied
        self._terms = TermHistory(context)
        self._nomination: Nomination | None = None
        self._serving: Fence | None = None
        self._ends: dict[WorkerId, str] = {}
        self._election = Election(context.client, context.session, context.keys.election, former_lease=former_lease)
        self._lock = asyncio.Lock()
        self._leadership: Leadership | None = None
        self._outage = Outage("the candidate key cannot be written")
        self._failed = Retry(SERVICE, "this leadership term ended")

    def __repr__(self) -> str:
        return f"Candidacy({self._leadership or self._election!r})"

    def wake(self) -> None:
        """The state has changed: a leader decides again."""
        if self._leadership is not None:
            self._leadership.wake()

    async def update(self) -> None:
        """Writes the candidate key that fits the workers of this node."""
        async with self._lock:
            try:
                await Retry(UNAVAILABLE, self._outage).run(self._update)
            except EtcdError as error:
                self._outage.met(error)
                if isinstance(error, EtcdDenied):
                    self._on_denied(error)

    def ended(self, worker: WorkerId, how: str) -> None:
        """A worker is gone. Call it before `update`: then the next leader can record how the former term ended."""
        self._ends[worker] = how
        if len(self._ends) > ENDS_KEPT:
            del self._ends[next(iter(self._ends))]

    async def resign(self) -> None:
        """Withdraws the candidate: the next one leads at once. If etcd cannot be reached, the end of the lease does the
        same."""
        with contextlib.suppress(EtcdError):
            await self._replace(self._election.resign(), "its agent was stopped")

    async def run(self) -> None:
        """Campaigns and leads, again and again, until cancelled."""
        while True:
            fence = await self._election.elected()
            try:
                await self._serve(fence)
            except EtcdError as error:
                if isinstance(error, EtcdDenied):
                    self._on_denied(error)
                await self._failed.failed(error)
            except Exception:  # an error in deciding ends a term, not the agent and its workers
                log.exception("this leadership term ended with an error")
                await asyncio.sleep(FAILED_TERM_S)

    async def _serve(self, fence: Fence) -> None:
        self._serving = fence
        try:
            leader = await self._terms.proclaim(fence) if len(self._workers) else None
            if leader is None:
                await asyncio.sleep(NO_WORKER_S)
                return
            self._failed.succeeded()
            self._give_time(leader.worker)
            await self._state.informer.wait_listed()
            log.info("rank %d leads with token %d", leader.rank, leader.token)
            await self._lead(fence)
        finally:
            self._serving = None

    def _give_time(self, leader: WorkerId) -> None:
        """Restarts the stall time of a new leader, because it may have waited for the former one. Not if it has already
        had that time."""
        worker, nomination = self._workers.of_id(leader), self._nomination
        if worker is not None and (nomination is None or leader not in nomination.passed):
            worker.excused_until = max(worker.excused_until, time.monotonic())

    async def _lead(self, fence: Fence) -> None:
        self._leadership = Leadership(
            self._client,
            self._keys,
            fence,
            self._state,
            pace=self._pace,
            dry_runner=self._dry_runner,
            ttl_s=self._ttl_s,
            on_denied=self._on_denied,
        )
        try:
            await first_of(self._leadership.run(), self._election.lost(fence))
        finally:
            self._leadership = None
            log.info("the term with token %d is over", fence.token)

    # -- the candidate ----------------------------------------------------------------------------------------------

    async def _update(self) -> None:
        before, now = self._nomination, await self._nominated()
        worker = self._workers.of_id(now.worker) if now is not None else None
        if now is None or worker is None:
            await self._replace(self._election.resign(), self._end_of(before))
        elif not self._session.lease_id:
            return
        else:
            named = Candidate(node=self._node, **worker.id._asdict(), yielded=now.yielded)
            is_other = before is None or (before.worker, before.yielded) != (now.worker, now.yielded)
            standing = self._election.enter(str(worker.id), named.encode())
            await (self._replace(standing, self._end_of(before)) if is_other else standing)
        self._nomination = now

    async def _replace(self, change: Coroutine[Any, Any, None], why: str | None) -> None:
        """Replaces or withdraws the candidate. If it leads, first records why, for its successor."""
        leading = self._serving
        if leading is None:
            await change
            return
        if why is None:
            await change
        else:
            await all_of(self._terms.note_end(leading, why), change)  # the note is sent first
        if self._serving is leading:
            self._serving = None

    def _end_of(self, nomination: Nomination | None) -> str | None:
        if nomination is None:
            return None
        worker = self._workers.of_id(nomination.worker)
        if worker is None:
            return self._ends.get(nomination.worker)
        if not worker.view:
            return CAME_FIRST
        return f"it passed no step boundary for {worker.progress().silence_s(time.monotonic()):.0f} s"

    async def _nominated(self) -> Nomination | None:
        """Asks etcd for rival candidates only if the answer matters."""
        workers, now = [worker.progress() for worker in self._workers], time.monotonic()
        choose = partial(
            nominate,
            self._nomination,
            workers,
            now,
            timeout_s=self._stall_timeout_s,
            leads=self._serving is not None,
        )
        alone = choose(rivals=False)
        if choose(rivals=True) == alone:
            return alone
        return choose(rivals=await self._has_rivals())

    async def _has_rivals(self) -> bool:
        listing = await self._client.range(self._keys.election)
        standing = (Candidate.decode_or_none(item.value) for item in in_order(listing.kvs, self._keys.election))
        return any(other is not None and other.node != self._node and not other.yielded for other in standing)
