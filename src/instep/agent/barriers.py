"""The node's part in barriers: reports which of its ranks wait at which barrier, and releases them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from instep.agent.context import Component, Context
from instep.agent.retrying_writer import ATTEMPT_S
from instep.agent.workers import LocalWorker
from instep.names import is_hyperparameter_name
from instep.protocol import barriers
from instep.protocol.barriers import BarrierSituation, BarrierWait
from instep.protocol.keys import last_part
from instep.protocol.records import Arrivals, Left, View, Waiting, WorkerId
from instep.tasks import all_of
from instep.wire.codec import WireError
from instep.wire.messages import (
    AskBarrier,
    BarrierReleased,
    EnterBarrier,
    FromWorker,
    LeaveBarrier,
    MissingRanks,
    QueryFailure,
    QueryResult,
)

PARTIAL_S: Final = 1.0
"""If some ranks of the node are still missing so long after the first arrival, those that have arrived are reported:
then the missing ones can be named."""


class Barriers(Component):
    """Promise: a waiting rank is released once all ranks have arrived, by this agent or the next, whichever leader
    wrote the release; a rank that gives up is withdrawn. One key per node, usually written once, when its last rank
    arrives."""

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(context)
        self._key = context.keys.arrivals_of(context.node)
        self._clock = clock
        self._calls: dict[WorkerId, BarrierWait] = {}
        """Workers that wait, and at which barrier."""
        self._since = 0.0
        self._wanted: Arrivals | None = None
        """The arrivals that etcd is to hold, as far as they count."""
        self._is_known = False
        """Whether the key in etcd is known: a former agent may have written it."""

    def __repr__(self) -> str:
        return f"Barriers({len(self._calls)} wait)"

    # -- what workers say -------------------------------------------------------------------------------------------

    def handle(self, worker: LocalWorker, message: FromWorker) -> None:
        match message:
            case EnterBarrier(name, view, after):
                if not is_hyperparameter_name(name):
                    raise WireError(f"{name!r} cannot name a barrier")
                self._since = self._since if self._calls else self._clock()
                self._calls[worker.id] = BarrierWait(name, view, after)
                self.follow()
            case AskBarrier():
                self._answer_query(worker, message.q, lambda: self._missing(message), limit_s=ATTEMPT_S)
            case LeaveBarrier():
                self.gone(worker, failed=False)

    def gone(self, worker: LocalWorker, *, failed: bool) -> None:
        if self._calls.pop(worker.id, None) is not None:
            self._report()

    # -- what they learn --------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """The run's state has changed, or a rank has arrived."""
        for worker in self._workers:
            call = self._calls.get(worker.id)
            released = self._state.released.get(call.name) if call is not None else None
            if call is not None and released is not None and call.is_freed_by(released):
                del self._calls[worker.id]
                self._wanted = barriers.without(self._wanted, call.name)  # these arrivals no longer count
                number = released.record.number
                worker.send(BarrierReleased(call.name, number))
        self._report()

    def tick(self) -> None:
        self._report()

    @property
    def waits(self) -> bool:
        return bool(self._calls)

    def repeat(self) -> None:
        """With the next state, or the next tick."""
        self._wanted, self._is_known = None, False

    async def _missing(self, query: AskBarrier) -> QueryResult:
        """Which ranks are missing at a barrier. Raises EtcdError."""
        problem = self._quota.problem
        if problem is not None:
            return QueryFailure(query.q, problem)
        view = self._state.view
        if view is None:
            return MissingRanks(query.q, ())
        listed = await all_of(self._client.range(self._keys.left), self._client.range(self._keys.arrivals))
        left = {last_part(item.key): Left.decode_or_none(item.value) for item in listed[0].kvs}
        arrivals = {last_part(item.key): Arrivals.decode_or_none(item.value) for item in listed[1].kvs}
        arrivals[self._node] = self._now(view)
        situation = BarrierSituation(
            view=view,
            left={node: record for node, record in left.items() if record is not None},
            released=self._state.released,
            arrivals={node: record for node, record in arrivals.items() if record is not None},
        )
        found = barriers.missing_ranks(situation, query.name)
        return MissingRanks(query.q, found.ranks, found.elsewhere)

    # -- reports to the leader --------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Reports the arrivals if they have changed. Does nothing until the view is known."""
        view = self._state.view
        if view is None or (self._is_known and not self._calls and self._wanted is None):
            return
        wanted = self._now(view)
        local = self._workers.in_view(view, self._node)
        all_wait = all(worker.id in self._calls for worker in local.values())
        overdue = bool(self._calls) and self._clock() - self._since > PARTIAL_S
        is_new, self._is_known = bool(local) and not self._is_known, True
        if is_new or barriers.is_due(wanted, self._wanted, all_wait=all_wait, overdue=overdue):
            self._wanted = wanted
            self._writer.keep(self._key, wanted.encode() if wanted is not None else None)

    def _now(self, view: View) -> Arrivals | None:
        """All ranks of the view that wait on this node; None if there are none."""
        ranks: dict[str, list[int]] = {}
        after: dict[str, int] = {}
        for rank, worker in sorted(self._workers.in_view(view, self._node).items()):
            call = self._calls.get(worker.id)
            if call is not None:
                ranks.setdefault(call.name, []).append(rank)
                after[call.name] = max(call.after, after.get(call.name, 0))
        waiting = {
            name: Waiting(ranks=tuple(here), seen=self._seen(name), after=after[name]) for name, here in ranks.items()
        }
        return Arrivals(view=view.number, waiting=waiting) if waiting else None

    def _seen(self, name: str) -> int:
        released: Mapping[str, barriers.Released] = self._state.released
        return released[name].revision if name in released else 0
