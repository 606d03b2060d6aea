"""The connected workers: joins, messages, places in the view, departures."""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import Final

from instep.agent import failures
from instep.agent.candidacy import Candidacy
from instep.agent.connection import DisconnectedWorker, WorkerConnection
from instep.agent.context import Component, Context
from instep.agent.member_registrar import MemberRegistrar
from instep.agent.persisted_workers import PersistedWorkers
from instep.agent.plan_relay import PlanRelay
from instep.agent.workers import LocalWorker
from instep.errors import EtcdDenied
from instep.protocol.chain import HeadStatus, Promised, head_status
from instep.protocol.records import Agreed, RankFailure, View, WorkerId, parse_ranks
from instep.version import VERSION
from instep.wire import messages as wire

log = logging.getLogger("instep")

MAX_EARLY: Final = 200
"""Upper bound for the queued messages of one worker before the run's state is known."""
SAY_DENIED_EVERY_S: Final = 60.0
GIVE_UP_S: Final = 30.0
"""An agent that never reached etcd keeps dead workers so long."""


class WorkerSessions(Component):
    """Each worker is registered, and is a candidate for the lead, until it is gone; its entry in the persisted
    workers, its registration and its candidacy are then removed. Messages received before `open()` are queued until
    the run's state is known. `is_open`: whether it is."""

    def __init__(
        self,
        context: Context,
        *,
        persisted_workers: PersistedWorkers,
        plan_relay: PlanRelay,
        registrar: MemberRegistrar,
        candidacy: Candidacy,
        components: tuple[Component, ...],
    ) -> None:
        super().__init__(context)
        self._persisted_workers = persisted_workers
        self._plan_relay = plan_relay
        self._registrar = registrar
        self._candidacy = candidacy
        self._components = components
        self.is_open = False
        self._early: deque[tuple[WorkerConnection | DisconnectedWorker, wire.FromWorker | None]] = deque()
        """Queued messages in order; None for a death."""
        self._dead_since: float | None = None
        self._say_denied_at = 0.0
        self._told_of: frozenset[WorkerId] = frozenset()
        """Refused processes that the holders of their ranks were notified of."""

    def __repr__(self) -> str:
        return (
            f"WorkerSessions({self._workers!r}, {'open' if self.is_open else f'{len(self._early)} wait to be handled'})"
        )

    def adopt(self) -> None:
        """Registers the workers of a former agent that have not connected yet: one of them may wait in a step for a
        dead rank, whose replacement needs all of them."""
        for worker in self._persisted_workers.load(self._node, self.on_died):
            log.info("rank %d (pid %d) lives: waiting for it to connect", worker.rank, worker.connection.pid)
            self._workers.add(worker)

    def open(self) -> None:
        """The run's state is known: processes the queued messages; later ones are processed at once."""
        self.is_open = True
        while self._early:
            connection, message = self._early.popleft()
            if message is None:
                self.on_died(connection)
            elif isinstance(connection, WorkerConnection) and not connection.closed:
                connection.guarded(partial(self.on_message, connection, message))

    # -- what workers say -------------------------------------------------------------------------------------------

    def on_message(self, connection: WorkerConnection, message: wire.FromWorker) -> None:
        """Raises ValueError for a message that cannot be acted on."""
        match message:
            case wire.OtherHello(version):
                connection.send(wire.Failure("agent", _other_version(version)))
            case wire.Hello():
                if message.version != VERSION:
                    connection.send(wire.Note(logging.WARNING, _other_version(message.version)))
                self._on_hello(LocalWorker.from_hello(message, self._node, connection), message.undecided)
            case _ if not self.is_open:
                self._hold(connection, message)
            case _:
                worker = self._workers.of(connection)
                if worker is not None:
                    self._handle(worker, message)

    def _handle(self, worker: LocalWorker, message: wire.FromWorker) -> None:
        match message:
            case wire.Leave(clean, step):
                self._on_gone(worker, None if clean else failures.of_exception(worker, message), last_step=step)
            case wire.MetricsReport(metrics):
                worker.metrics = metrics
            case wire.WorkerStatus():
                worker.status = message
            case _:
                for component in self._components:
                    component.handle(worker, message)

    def _hold(self, connection: WorkerConnection, message: wire.FromWorker) -> None:
        """Queues a message until the state is known. A worker that sends too many is disconnected: it connects again
        and repeats what still counts."""
        self._early.append((connection, message))
        if sum(other is connection for other, _ in self._early) > MAX_EARLY:
            log.warning("worker %d sent too many messages while etcd did not answer: it must reconnect", connection.pid)
            self._early = deque(item for item in self._early if item[0] is not connection or item[1] is None)
            connection.hang_up()

    def on_died(self, connection: WorkerConnection | DisconnectedWorker) -> None:
        if not self.is_open:
            self._early.append((connection, None))
            return
        worker = self._workers.of(connection)
        if worker is not None:
            failure = failures.of_death(worker, connection.ending)
            log.warning("rank %d (pid %d) died: %s", worker.rank, worker.member.pid, failure.cause)
            self._on_gone(worker, failure)

    def _on_hello(self, worker: LocalWorker, undecided: int | None) -> None:
        log.info("rank %d of %d (pid %d) has connected", worker.rank, worker.member.world_size, worker.member.pid)
        for other in self._workers:
            if other.rank == worker.rank and other.id != worker.id and other.absent:
                self._on_gone(other, failures.of_replaced(other))  # it gets the reason when it connects
        self._workers.add(worker)
        self._writer.start(self.register(worker))
        self._writer.start(self._candidacy.update())
        if self.is_open:
            self._meet(worker)
        promised = _promised(worker, undecided)
        if promised is not None:
            self._plan_relay.look_up(promised)

    def _on_gone(self, worker: LocalWorker, failure: RankFailure | None, *, last_step: int = -1) -> None:
        """`failure` is None for a worker that has left cleanly. It receives `Bye` after etcd has recorded its end."""
        was_member = self._plan_relay.is_member(worker)
        self._remove(worker)
        self._candidacy.ended(worker.id, "it left" if failure is None else "its process died")
        if not was_member:
            self._bye(worker)
        elif failure is None:
            self._plan_relay.left(worker.rank, last_step, partial(self._bye, worker))
        else:
            self._plan_relay.failed(worker.rank, failure, partial(self._bye, worker))
        self._forget(worker, failed=failure is not None)

    def _bye(self, worker: LocalWorker) -> None:
        worker.send(wire.Bye())
        worker.connection.close()

    # -- their place in the view ------------------------------------------------------------------------------------

    def meet_all(self) -> None:
        """In a new view, or when it can be entered. Registers all workers again, because a registration names the
        view."""
        met = [self._meet(worker) for worker in self._workers]
        if any(met):
            self._writer.start(self.register())

    def reset(self) -> None:
        """etcd holds another history: the workers' place in it is not known."""
        for worker in self._workers:
            worker.met = worker.awaits = 0

    def dismiss_refused(self) -> None:
        """Removes workers whose registration the leader has refused."""
        for worker in self._workers:
            refused = self._state.refused.get(worker.id)
            if refused is not None:
                self._dismiss(worker, "refused", refused.reason)
        members = self._plan_relay.members()
        for other, record in self._state.refused.items():
            holder = members.get(other.rank)
            if holder is not None and other not in self._told_of:
                text = f"another process wanted to join as rank {other.rank} and was refused: {record.reason}"
                holder.send(wire.Note(logging.WARNING, text))
        self._told_of = frozenset(self._state.refused)

    def give_up_on_the_dead(self, now: float) -> None:
        """Removes dead workers of an agent that never reached etcd. `now` in seconds on the monotonic clock."""
        living = [worker for worker in self._workers if not worker.connection.closed]
        if self.is_open or living or not len(self._workers):
            self._dead_since = None
            return
        self._dead_since = self._dead_since or now
        if now - self._dead_since > GIVE_UP_S:
            for worker in self._workers:
                self._workers.remove(worker)

    def _meet(self, worker: LocalWorker) -> bool:
        """Sends a worker its place in the view, if it has one. True if it must be registered again."""
        view = self._state.view
        if view is None or worker.met == view.number:
            return False
        if not self._plan_relay.is_member(worker):
            if worker.view and view.number > worker.view:
                self._dismiss(worker, "evicted", _evicted(worker, view))
            return False
        agreed = self._may_enter(worker, view)
        if agreed is None:
            return self._awaits(worker, view)
        is_new = not worker.view
        worker.met = view.number
        if worker.view != view.number:
            worker.view = view.number
            if is_new or worker.agreed is None:
                worker.agreed = agreed
            self._persisted_workers.save(self._workers)
        worker.send(wire.EnterView(view.number, view.start, self._node, agreed))
        for component in self._components:
            component.welcome(worker)
        return True

    def _awaits(self, worker: LocalWorker, view: View) -> bool:
        """A newcomer that the view counts as staying: the others wait until its registration shows that it has not
        begun."""
        if worker.view or worker.awaits == view.number or worker.rank not in parse_ranks(view.staying):
            return False
        worker.awaits = view.number
        return True

    def _may_enter(self, worker: LocalWorker, view: View) -> Agreed | None:
        """The agreed values if the worker may enter the view, else None. A worker that has trained must hold them or
        the decision before; otherwise etcd has lost something. A newcomer must get what all staying ranks hold, so
        it waits until they are in the view."""
        agreed, entered = self._state.agreed, self._state.entered
        if agreed is None or worker.view > view.number:
            return None
        if worker.view:
            held = worker.agreed
            return agreed if held is None or head_status(held.plan, held.digest, agreed) is HeadStatus.IN_STEP else None
        digest = view.start.digest
        if digest and not view.fresh and (entered is None or entered.view < view.number):
            return None
        return agreed if digest == agreed.digest else None

    def _dismiss(self, worker: LocalWorker, kind: str, text: str) -> None:
        log.warning("rank %d: %s", worker.rank, text)
        worker.send(wire.Failure(kind, text))
        self._remove(worker)
        self._candidacy.ended(worker.id, f"it was {kind}")
        self._forget(worker)

    def _remove(self, worker: LocalWorker) -> None:
        self._workers.remove(worker)
        self._persisted_workers.save(self._workers)

    # -- what etcd knows of them ------------------------------------------------------------------------------------

    async def register(self, *workers: LocalWorker) -> None:
        """Registers these workers; all of them if none is named."""
        try:
            await self._registrar.register(workers or list(self._workers))
        except EtcdDenied as error:
            self.deny(error)

    def deny(self, error: EtcdDenied) -> None:
        """etcd permits reads but not the writes that a view needs: joining ranks fail at once, training ones
        continue."""
        self.note_denied(error)
        for worker in self._workers:
            if not worker.view:
                self._dismiss(worker, "denied", str(error))

    def note_denied(self, error: EtcdDenied) -> None:
        """Reports a write that etcd does not permit, in the agent's log and in the training's, once a minute."""
        now = time.monotonic()
        if now < self._say_denied_at:
            return
        self._say_denied_at = now + SAY_DENIED_EVERY_S
        log.error("%s", error)
        text = f"{error} Training continues; writes that need the permission wait until it is granted."
        for worker in [worker for worker in self._workers if worker.view][:1]:
            worker.send(wire.Note(logging.ERROR, text))

    def _forget(self, worker: LocalWorker, *, failed: bool = False) -> None:
        for component in self._components:
            component.gone(worker, failed=failed)
        self._writer.start(self._registrar.forget(worker))
        self._writer.start(self._candidacy.update())


def _other_version(theirs: str) -> str:
    return (
        f"the node's agent runs Instep {VERSION}, this process {theirs}: end the run's "
        "processes on this node, wait until its agent has left, and start them with one version"
    )


def _promised(worker: LocalWorker, undecided: int | None) -> Promised | None:
    """The plan whose decision neither the worker nor its agent knows."""
    promised = worker.promised
    if promised is not None and undecided in (None, promised.number):
        return promised
    return Promised(undecided, "", 0) if undecided is not None else None


def _evicted(worker: LocalWorker, view: View) -> str:
    if worker.rank >= view.world_size:
        return (
            f"rank {worker.rank} is not part of view {view.number}, which has {view.world_size} ranks: "
            "stop this process"
        )
    return (
        f"rank {worker.rank} was taken over by another process that joined later (view {view.number}), with "
        "take_over=True, from the same torchrun, or while this one was out of reach: stop this process; if both were "
        "meant to run, give each its own RANK"
    )
