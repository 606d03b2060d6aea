"""Who has led the run, one after the other, as etcd holds it; and how each one's time ended."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Final

from instep.agent.state import RunState
from instep.agent.workers import Workers
from instep.errors import EtcdError
from instep.etcd import Client, Op
from instep.protocol.keys import Keys, last_part
from instep.protocol.records import Candidate, Epoch, Leader, Resigned
from instep.protocol.transactions import proclaim
from instep.recipes.fence import Fence
from instep.recipes.token import make_token, revision_of
from instep.tasks import all_of

NOTE_S: Final = 2.0


class TermHistory:
    """Promise: a leader is proclaimed by a txn that its token guards, each with the number that follows. Limit: why the
    one before it leads no more is told if its agent could say so, or if its node is gone; else it is not known."""

    def __init__(self, client: Client, keys: Keys, state: RunState, workers: Workers, node: str) -> None:
        self._client = client
        self._keys = keys
        self._state = state
        self._workers = workers
        self._node = node

    async def proclaim(self, fence: Fence) -> Leader | None:
        """Tells the run that the worker named by our candidate leads; None when the term is over already."""
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
        """Leaves word for the next one. What cannot be written at once is left out: nobody waits for it."""
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
        """Where the state does not tell, the history does."""
        if former is not None and former.term:
            return former.term + 1
        listing = await self._client.range(self._keys.terms)
        numbers = (last_part(item.key) for item in listing.kvs)
        return max((int(number) for number in numbers if number.isdecimal()), default=0) + 1


def why_ended(former: Leader, note: Resigned | None, *, registered: bool) -> str | None:
    """How the term of `former` ended: as its agent said, or with its node's lease; None when neither tells."""
    if note is not None and note.token == revision_of(former.token):
        return note.why
    return None if registered else "its node was lost"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
