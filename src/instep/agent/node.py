"""The node: connects workers, pure decisions and etcd. It decides nothing itself."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable
from typing import Final

from instep.agent.barriers import Barriers
from instep.agent.candidacy import Candidacy
from instep.agent.checkpoint_registry import CheckpointRegistry
from instep.agent.checkpoint_vote import CheckpointPins, CheckpointVote
from instep.agent.connection import DisconnectedWorker, WorkerConnection
from instep.agent.context import Component, Context
from instep.agent.handover import LeaseFile
from instep.agent.heads import Heads
from instep.agent.leadership import Pace
from instep.agent.member_registrar import MemberRegistrar
from instep.agent.metrics import MetricsWriter
from instep.agent.name import NodeName
from instep.agent.persisted_workers import PersistedWorkers
from instep.agent.plan_relay import PlanRelay
from instep.agent.preemption_relay import PreemptionRelay
from instep.agent.retrying_writer import QuotaMonitor, RetryingWriter
from instep.agent.start_dry_run import StartDryRun
from instep.agent.state import RunState
from instep.agent.worker_notifier import WorkerNotifier
from instep.agent.worker_sessions import WorkerSessions
from instep.agent.workers import PaceMeter, Workers
from instep.errors import EtcdUnavailable, InstepError
from instep.etcd import Client, Event
from instep.outage import Outage
from instep.protocol.keys import Keys
from instep.protocol.records import Epoch, Left
from instep.protocol.recovery import explain
from instep.recipes.retry import UNAVAILABLE, Retry
from instep.recipes.session import LinkState, Session
from instep.settings import DEFAULT_STALL_TIMEOUT_S
from instep.tasks import Background
from instep.wire.messages import Failure, FromWorker, Hello

log = logging.getLogger("instep")

TICK_S: Final = 1.0
REPEAT_TICKS: Final = 5
"""While ranks wait for an answer, their node compares what it has written with etcd after so many ticks. etcd may have
lost it unnoticed: a restored history can grow past the revision that agents have seen before they look."""
FIRST_WORKER_S: Final = 30.0
"""An agent without any worker after this time ends."""
DRAIN_S: Final = 10.0
"""How long the last writes of a rank that has left (its departure, its receipt) are retried while etcd cannot be
reached."""
LEAVE_S: Final = 30.0


class Node:
    """Everything that one agent does for one run. `run` returns when the last worker is gone."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        name: NodeName,
        ttl_s: int,
        persisted_workers: PersistedWorkers,
        leases: LeaseFile | None = None,
        *,
        stall_timeout_s: float = DEFAULT_STALL_TIMEOUT_S,
    ) -> None:
        self._leases = leases
        self._former_lease = leases.read() if leases is not None else 0
        self._pace = PaceMeter()
        self._void_token = 0
        """Terms up to this token were on a lease that this agent has lost: they are over, whatever is read later."""
        self._relisted = False
        """etcd holds another history, and its first listing is being processed."""
        self._settled = 0
        """The newest epoch for which earlier promises were looked up."""
        self._left_before: Left | None = None
        self._leaving = False
        self.why_ended = "its last worker has left"
        self._unlisted = Outage("the run's state cannot be read")
        self.on_empty: Callable[[], None] = lambda: None
        """Called when the last worker is gone: after that no worker may connect."""
        self.on_tick: Callable[[], None] = lambda: None
        self.problem_here: Callable[[], str | None] = lambda: None
        """Why processes of this node cannot connect; None if they can."""
        self._client, self._keys, self._name = client, keys, name.name
        self._persisted_workers = persisted_workers
        self._context = self._new_context(ttl_s)
        dry_run = StartDryRun(self._context)
        self._plan_relay = PlanRelay(self._context, self._keep_told)
        self._components = self._new_components(dry_run)
        self._metrics = MetricsWriter(self._context)
        self._candidacy = Candidacy(
            self._context,
            pace=self._measure,
            dry_runner=dry_run.ask,
            ttl_s=ttl_s,
            stall_timeout_s=stall_timeout_s,
            former_lease=self._former_lease,
            on_denied=lambda error: self._sessions.deny(error),
        )
        self._registrar = MemberRegistrar(self._context, name)
        self._sessions = WorkerSessions(
            self._context,
            persisted_workers=persisted_workers,
            plan_relay=self._plan_relay,
            registrar=self._registrar,
            candidacy=self._candidacy,
            components=self._components,
        )
        self._heads = Heads(self._context, register=self._sessions.register, on_epoch=self._on_epoch)
        self._writer.is_certain = lambda: self._heads.is_certain

    def _new_components(self, dry_run: StartDryRun) -> tuple[Component, ...]:
        context = self._context
        pins = CheckpointPins(context)
        vote = CheckpointVote(context, pins)
        registry = CheckpointRegistry(context, pins, vote)
        return dry_run, pins, vote, registry, Barriers(context), PreemptionRelay(context), self._plan_relay

    def _new_context(self, ttl_s: int) -> Context:
        client, keys = self._client, self._keys
        self._workers = Workers()
        self._state = RunState(client, keys, self._on_state, self._on_reset)
        self._notifier = WorkerNotifier(client, self._state, self._workers)
        self._quota = QuotaMonitor(self._notifier.note, lambda error: self._sessions.note_denied(error))
        self._session = Session(
            client, ttl_s=ttl_s, on_lease=self._on_lease, on_link=self._on_link, on_trouble=self._quota.refused
        )
        self._writer = RetryingWriter(client, keys, self._quota)
        return Context(
            node=self._name,
            client=client,
            keys=keys,
            session=self._session,
            state=self._state,
            workers=self._workers,
            quota=self._quota,
            writer=self._writer,
        )

    def __repr__(self) -> str:
        return f"Node({self._name}, {self._workers!r}, {self._state!r})"

    @property
    def serves(self) -> bool:
        """Whether a worker is here, or the departure of the last one is being written."""
        return self._leaving or len(self._workers) > 0

    @property
    def trains(self) -> bool:
        """Whether a worker of a view is here: it needs an agent."""
        return any(worker.view for worker in self._workers)

    async def run(self) -> None:
        """Serves until the last worker is gone, then releases everything.

        Raises EtcdDenied or SettingsError if etcd rejects this agent, NodeNameTaken if another node has its name.
        """
        self._sessions.adopt()
        async with Background("the agent") as serving:  # the session still runs while the last writes are made
            ends = (self._wait_empty(), self._registrar.wait_name_taken())
            works = (self._follow_state(), self._candidacy.run(), self._tick(), self._beat(), *ends)
            tasks = [serving.start(work, awaited=True) for work in (self._session.run(), *works)]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                await self._writer.drain(DRAIN_S)
                await self._candidacy.resign()

    def fail_all(self, error: InstepError, kind: str) -> None:
        """Sends every worker the reason why this agent cannot serve."""
        for worker in self._workers:
            worker.send(Failure(kind, str(error)))

    def on_message(self, connection: WorkerConnection, message: FromWorker) -> None:
        """Raises ValueError for a message that cannot be acted on."""
        self._sessions.on_message(connection, message)
        if isinstance(message, Hello):
            self._heads.follow()
            self._notify_leader()

    def on_died(self, connection: WorkerConnection | DisconnectedWorker) -> None:
        self._sessions.on_died(connection)

    # -- what etcd says ---------------------------------------------------------------------------------------------

    async def _follow_state(self) -> None:
        retry = Retry(UNAVAILABLE, self._unlisted)
        while True:
            try:
                left = await self._client.get(self._keys.left_of(self._name), timeout_s=TICK_S)
                self._left_before = Left.decode_or_none(left.value if left is not None else None)
                await self._state.informer.run()
            except EtcdUnavailable as error:
                self._notifier.report_unlisted(str(error))
                await retry.failed(error)

    def _on_state(self, events: tuple[Event, ...]) -> None:
        """The view comes first: a worker enters it before it receives its plans."""
        news = events if self._sessions.is_open and not self._relisted else ()
        self._relisted = False
        self._metrics.run_changed()
        self._unlisted.over()
        if self._plan_relay.enter_view(self._left_before):
            self._notifier.note_versions()
        self._sessions.meet_all()
        self._heads.follow()  # a worker that enters the view now is registered in this epoch
        self._plan_relay.follow_plans(news)
        self._look_up_promises()
        self._sessions.dismiss_refused()
        self._notify_leader()
        for component in self._components:
            component.follow()
        self._candidacy.wake()
        self._sessions.open()

    def _on_reset(self) -> None:
        """etcd holds another history than the one that this agent has followed."""
        self._relisted = True
        self._plan_relay.reset()
        self._sessions.reset()

    def _on_epoch(self, epoch: Epoch) -> None:
        """etcd's history went back, or checkpoints were adopted; or that epoch is settled. etcd may have lost this
        node's reports, whether or not this agent noticed."""
        self._notifier.note(explain(epoch), level=logging.INFO if epoch.settled else logging.WARNING)
        for component in self._components:
            component.repeat()

    def _look_up_promises(self) -> None:
        """After the ranks have reported what they hold, earlier promises are decided by that."""
        epoch = self._state.epoch
        if epoch is None or not epoch.settled or epoch.number <= self._settled:
            return
        self._settled = epoch.number
        for worker in self._workers:
            held = worker.promised
            if held is not None and held.epoch < epoch.number:
                self._plan_relay.look_up(held)

    def _keep_told(self) -> None:
        self._persisted_workers.save(self._workers)

    def _notify_leader(self) -> None:
        leader = self._state.leader
        holds = leader is not None and self._session.valid and leader.token > self._void_token
        self._workers.notify_leader(leader if holds else None)

    def _on_link(self, link: LinkState) -> None:
        if link == "lost" and self._state.leader is not None:
            self._void_token = self._state.leader.token
        self._notify_leader()

    async def _on_lease(self, lease_id: int) -> None:
        if self._leases is not None:
            self._leases.write(lease_id)
        await self._sessions.register()
        await self._candidacy.update()
        former, self._former_lease = self._former_lease, 0
        if former:  # after its workers and its candidate are on our lease
            self._writer.start(self._revoke(former))
        for component in self._components:
            component.on_lease()
        self._heads.follow()

    async def _revoke(self, former: int) -> None:
        """Revokes the lease of this node's dead agent. That agent is not running: this one holds the folder's lock."""
        await self._writer.retry_until_done(lambda: self._client.lease_revoke(former, timeout_s=TICK_S))
        log.info("the lease of this node's former agent is revoked")

    # -- as time passes ---------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        outage = Outage("a periodic task of the agent failed, training continues")
        for number in itertools.count(1):
            await asyncio.sleep(TICK_S)
            try:
                if number % REPEAT_TICKS == 0:
                    self._repeat_what_waits()
                await self._look_around()
                outage.over()
            except InstepError as error:  # the next tick tries again
                outage.met(error)

    def _repeat_what_waits(self) -> None:
        for component in self._components:
            if component.waits:
                component.repeat()

    async def _look_around(self) -> None:
        self._pace.observe(*self._workers.furthest())
        self._workers.look(time.monotonic(), self._state.paused_at)
        self._notify_leader()
        self.on_tick()
        self._writer.start(self._candidacy.update())  # its worker may have stalled, or the key may be gone
        self._notifier.note_link()
        for component in self._components:
            component.tick()
        self._sessions.give_up_on_the_dead(time.monotonic())
        self._notifier.send_join_waits(self._quota.problem, here=self.problem_here())
        if not await self._metrics.write(self._workers, self._state.view, self._pace.step_time_s):
            self._writer.start(self._sessions.register())

    async def _beat(self) -> None:
        """Shows the workers that this agent runs. They replace one that is stopped or stuck."""
        while True:
            for worker in self._workers:
                worker.beat(time.monotonic())
            await asyncio.sleep(TICK_S)

    def _measure(self) -> Pace:
        step, at = self._workers.furthest()
        self._pace.observe(step, at)
        known = step >= 0 and self._pace.step_time_s > 0
        return Pace(step if known else None, self._pace.step_time_s, max(0.0, time.monotonic() - at))

    async def _wait_empty(self) -> None:
        try:
            async with asyncio.timeout(FIRST_WORKER_S):
                await self._workers.wait_first()
        except TimeoutError:
            self.why_ended = f"no worker connected in {FIRST_WORKER_S:.0f} s"
            return
        await self._workers.wait_gone()
        self._leaving = True
        self.on_empty()
        # Nothing may block the exit. The supervisor's next agent revokes the lease.
        loop = asyncio.get_running_loop()
        loop.call_later(
            LEAVE_S, log.error, "the last worker left %.0f s ago and the agent has not ended: it exits", LEAVE_S
        )
        loop.call_later(LEAVE_S + TICK_S, os._exit, 1)
