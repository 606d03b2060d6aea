"""What the components of an agent share, and the life that each of them has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from instep.agent.retrying_writer import QuotaMonitor, RetryingWriter
from instep.agent.state import RunState
from instep.agent.workers import LocalWorker, Workers
from instep.errors import EtcdError
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import WorkerId
from instep.recipes.session import Session
from instep.wire.messages import FromAgent, FromWorker, QueryFailure, QueryResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Made once by the node."""

    node: str
    client: Client
    keys: Keys
    session: Session
    state: RunState
    workers: Workers
    quota: QuotaMonitor
    writer: RetryingWriter


class Component:
    """One job of the agent. The node calls each hook on all components, in one order; a component overrides the hooks
    that concern it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._node, self._client, self._keys = context.node, context.client, context.keys
        self._session, self._state, self._workers = context.session, context.state, context.workers
        self._quota, self._writer = context.quota, context.writer

    def handle(self, worker: LocalWorker, message: FromWorker) -> None:
        """Acts on a worker's message if it concerns this component. Raises ValueError if it cannot be acted on."""

    def _answer_query(
        self,
        worker: LocalWorker,
        q: int,
        find: Callable[[], Awaitable[QueryResult]],
        *,
        limit_s: float,
        about: str = "",
    ) -> None:
        """Answers the worker's query `q` in the background, if only with the problem after `limit_s` seconds."""

        async def answer() -> None:
            result: QueryResult
            try:
                async with asyncio.timeout(limit_s):
                    result = await find()
            except EtcdError as error:
                result = QueryFailure(q, str(error))
            except TimeoutError:
                result = QueryFailure(q, f"etcd has not answered in {limit_s:g} s{about}")
            self._send_to(worker.id, result)

        self._writer.start(answer())

    def _send_to(self, worker: WorkerId, message: FromAgent) -> None:
        """Sends the message over the worker's present connection, if it is here."""
        here = self._workers.of_id(worker)
        if here is not None:
            here.send(message)

    def welcome(self, worker: LocalWorker) -> None:
        """The worker has entered the view."""

    def gone(self, worker: LocalWorker, *, failed: bool) -> None:
        """The worker has left, has failed, or was refused."""

    def follow(self) -> None:
        """The run's state has changed."""

    def tick(self) -> None:
        """Called about once a second."""

    @property
    def waits(self) -> bool:
        """Whether ranks of this node wait for an answer to what it has written. Then `repeat` is called regularly."""
        return False

    def repeat(self) -> None:
        """etcd may have lost what this node has written: writes it again."""

    def on_lease(self) -> None:
        """The node has another lease: what was written on the former one ends with that."""
