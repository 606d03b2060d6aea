"""Workers of this node that were told to end: on their behalf the run is asked to save and stop."""

from __future__ import annotations

import logging
import time
from typing import Final

from instep.agent.effects import ATTEMPT_S, Effects
from instep.agent.worker import LocalWorker
from instep.agent.workers import Workers
from instep.coordination.keys import Keys
from instep.coordination.preemption import Known, ask_to_stop
from instep.coordination.records import Command
from instep.coordination.state import RunState
from instep.etcd import Client
from instep.wire import Message

log = logging.getLogger("instep")

AGAIN_S: Final = 5.0
"""Somebody may have deleted the command by hand."""
MAX_REASON: Final = 100


class Notices:
    """Promise: while a worker of the view that gave notice is here, the command that stops the run stands until a stop
    is agreed on; one command, however many workers and nodes ask. Call `follow` when the run's state has changed, and
    about once a second."""

    def __init__(
        self, node: str, client: Client, keys: Keys, state: RunState, workers: Workers, effects: Effects
    ) -> None:
        self._node = node
        self._client = client
        self._keys = keys
        self._state = state
        self._workers = workers
        self._effects = effects
        self._by_incarnation: dict[str, Command] = {}
        self._asking = False
        self._asked_at = (0, 0)
        self._again_at = 0.0

    def __repr__(self) -> str:
        return f"Notices({len(self._by_incarnation)} given{', asking' if self._asking else ''})"

    def hear(self, worker: LocalWorker, message: Message) -> None:
        """Raises KeyError or ValueError when it cannot be understood."""
        if worker.incarnation not in self._by_incarnation:
            author = f"rank {worker.rank} on {worker.member.host}"
            reason = str(message["reason"])[:MAX_REASON]
            log.warning("%s is told to end: %s", author, reason)
            command = Command(kind="stop", save=True, node=self._node, author=author, reason=reason)
            self._by_incarnation[worker.incarnation] = command
        self.follow()

    def gone(self, worker: LocalWorker) -> None:
        """It has left or died: whether the run stops is no concern of its any more."""
        self._by_incarnation.pop(worker.incarnation, None)

    def follow(self) -> None:
        known = self._known()
        if self._asking or known is None or self._command(known) is None:
            return
        if known.moment != self._asked_at or time.monotonic() >= self._again_at:
            self._asking = True
            self._effects.start(self._ask())

    def _known(self) -> Known | None:
        state = self._state
        if state.view is None or state.agreed is None:
            return None
        return Known(state.view_revision, state.agreed, state.agreed_revision, state.plan, state.decision)

    def _command(self, known: Known) -> Command | None:
        """What is to be asked for, on behalf of the lowest rank; None where there is no need."""
        if known.is_stopping or not self._by_incarnation:
            return None
        members = sorted(self._workers.in_view(self._state.view, self._node).items())
        asking = (self._by_incarnation.get(worker.incarnation) for _, worker in members)
        return next((command for command in asking if command is not None), None)

    async def _ask(self) -> None:
        try:
            await self._effects.insist(self._attempt)
        finally:
            self._asking = False
        self.follow()

    async def _attempt(self) -> None:
        """With what is known by now: while etcd was away the run may have gone on."""
        known = self._known()
        command = self._command(known) if known is not None else None
        if known is None or command is None:
            return
        txn = ask_to_stop(self._keys, known, command)
        result = await self._client.txn(txn.compares, txn.then, timeout_s=ATTEMPT_S)
        if result.succeeded:
            log.info("the run is asked to save and stop: %s, %s", command.author, command.reason)
        self._asked_at, self._again_at = known.moment, time.monotonic() + AGAIN_S
