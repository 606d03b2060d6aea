"""Asks a local worker that waits to join whether it could start with given values."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from instep.agent.context import Component, Context
from instep.agent.workers import LocalWorker
from instep.protocol.dry_run import DryRun, Refusals
from instep.protocol.records import View
from instep.wire.messages import AskDryRun, DryRunResult, FromWorker

log = logging.getLogger("instep")

ANSWER_S = 5.0

NOTHING: Mapping[int, Mapping[str, str]] = {}


class StartDryRun(Component):
    """Promise: `ask` returns within `ANSWER_S` seconds what one worker of the view refuses. Limit: if no worker of
    the view is on this node, or none answers, nothing is refused; the joins then fail with an error that names the
    values."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._number = 0
        self._answer: asyncio.Future[Refusals] | None = None

    def __repr__(self) -> str:
        return f"StartDryRun({self._number} so far)"

    async def ask(self, view: View, dry_run: DryRun) -> Refusals:
        """Only the leader's loop calls it, one call at a time."""
        worker = self._waiting_worker(view)
        if worker is None:
            return NOTHING
        self._number += 1
        self._answer = asyncio.get_running_loop().create_future()
        worker.send(AskDryRun(self._number, dry_run.values, dry_run.base, dry_run.groups()))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._answer
        except TimeoutError:
            log.warning("rank %d did not validate the values of the next view within %.0f s", worker.rank, ANSWER_S)
            return NOTHING
        finally:
            self._answer = None

    def handle(self, worker: LocalWorker, message: FromWorker) -> None:
        if not isinstance(message, DryRunResult) or message.number != self._number or self._answer is None:
            return
        if not self._answer.done():
            self._answer.set_result(dict(message.refused))

    def _waiting_worker(self, view: View) -> LocalWorker | None:
        named = view.workers()
        return next((worker for worker in self._workers if not worker.view and worker.id in named), None)
