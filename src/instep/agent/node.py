"""The node: wires workers, the pure decisions and etcd together. It decides nothing itself."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from instep.agent.absentee import Absentee
from instep.agent.connection import Connection
from instep.agent.effects import Effects
from instep.agent.metrics import MetricsWriter
from instep.agent.office import Office
from instep.agent.pace import PaceMeter
from instep.agent.registry import Registry
from instep.agent.roster import NoRoster, Roster
from instep.agent.space import Space
from instep.agent.tryouts import Tryouts
from instep.agent.worker import LocalWorker
from instep.agent.workers import Workers
from instep.coordination.keys import Keys
from instep.coordination.leadership import Pace
from instep.coordination.mirror import cancelled
from instep.coordination.node import (
    NodeAction,
    NodeAgreement,
    Settle,
    TellDecision,
    TellPlan,
    WriteAck,
    WriteLeft,
    WriteReceipt,
)
from instep.coordination.outage import Outage
from instep.coordination.records import Decision, Left, View
from instep.coordination.session import Session
from instep.coordination.state import RunState
from instep.coordination.transactions import acknowledge, write_left, write_receipt
from instep.errors import EtcdDenied, EtcdFull, EtcdUnavailable, InstepError
from instep.etcd import Client, Event
from instep.wire import Message

log = logging.getLogger("instep")

TICK_S: Final = 1.0
FIRST_WORKER_S: Final = 30.0
"""An agent to which nobody comes in this time goes."""
DRAIN_S: Final = 10.0
"""What a last rank left to be written (that it has left, its receipt) is tried for so long when etcd is away."""
LEAVE_S: Final = 30.0


class Node:
    """All that one agent does for one run. `run` returns when the last worker has gone."""

    def __init__(self, client: Client, keys: Keys, name: str, ttl_s: int, roster: Roster | None = None) -> None:
        self._client = client
        self._keys = keys
        self._name = name
        self._workers = Workers()
        self._roster = roster or NoRoster()
        self._agreement = NodeAgreement(name)
        self._pace = PaceMeter()
        self._space = Space(self._note)
        self._effects = Effects(client, keys, self._space)
        self._state = RunState(client, keys, self._on_state)
        self._session = Session(client, ttl_s=ttl_s, on_lease=self._on_lease)
        self._registry = Registry(client, keys, self._session, self._workers, self._space)
        self._tryouts = Tryouts(self._workers)
        self._office = Office(
            client,
            keys,
            self._session,
            self._state,
            self._workers,
            name,
            pace=self._measure,
            try_out=self._tryouts.ask,
            ttl_s=ttl_s,
        )
        self._metrics = MetricsWriter(client, keys, self._session, self._space)
        self._left_before: Left | None = None
        self._unlisted = Outage("the run's state cannot be read")
        self._listed = False
        self._early: list[Callable[[], None]] = []
        """What workers said before it was known where the run stands."""
        self._linked = True
        self._dead_since: float | None = None
        self._empty = asyncio.Event()
        self._somebody = asyncio.Event()
        self.on_empty: Callable[[], None] = lambda: None
        """Called when the last worker has gone: from then on nobody may come."""
        self.on_tick: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"Node({self._name}, {self._workers!r}, {self._state!r})"

    async def run(self) -> None:
        """Serves until the last worker has gone, then gives up everything it holds.

        Raises EtcdDenied or SettingsError when etcd will not have us at all.
        """
        self._adopt()
        serving = [
            asyncio.create_task(self._session.run()),
            asyncio.create_task(self._follow_state()),
            asyncio.create_task(self._office.run()),
            asyncio.create_task(self._tick()),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._wait_empty()),
        ]
        try:
            done, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await self._effects.drain(DRAIN_S)
            await self._office.resign()
            await cancelled(*serving)

    def _adopt(self) -> None:
        """Workers that a former agent served and that have not come yet are registered all the same: one of them may
        wait in a step for a rank that died, and its replacement needs all the others."""
        for worker in self._roster.load(self._name, self.on_died):
            log.info("rank %d (pid %d) lives, and is waited for", worker.rank, worker.connection.pid)
            self._workers.add(worker)
            self._somebody.set()

    def fail_all(self, error: InstepError, kind: str) -> None:
        """Tells every worker that nothing can be done for it, and why."""
        for worker in self._workers:
            worker.tell({"t": "failure", "kind": kind, "text": str(error)})

    # -- what workers say -------------------------------------------------------------------------------------------

    def on_message(self, connection: Connection, message: Message) -> None:
        """One message of a worker. Raises KeyError, TypeError or ValueError when it cannot be understood."""
        if message["t"] == "hello":
            self._on_hello(LocalWorker.from_hello(message, self._name, connection), message["undecided"])
            return
        if not self._listed:
            self._early.append(lambda: self.on_message(connection, message))
            return
        worker = self._workers.of(connection)
        if worker is None:
            return
        if message["t"] == "tried":
            self._tryouts.answered(message)
        elif message["t"] == "leave":
            worker.tell({"t": "bye"})
            self._on_gone(worker, clean=bool(message["clean"]), last_step=int(message["step"]))
        elif message["t"] == "report":
            worker.metrics = {str(name): float(value) for name, value in message["metrics"].items()}
        elif self._is_in_view(worker):
            self._do(self._answered(worker.rank, message))

    def on_died(self, connection: Connection | Absentee) -> None:
        if not self._listed:
            self._early.append(lambda: self.on_died(connection))
            return
        worker = self._workers.of(connection)
        if worker is not None:
            log.warning("rank %d (pid %d) died", worker.rank, worker.member.pid)
            self._on_gone(worker, clean=False)

    def _answered(self, rank: int, message: Message) -> list[NodeAction]:
        agreement, number = self._agreement, int(message["n"])
        match message["t"]:
            case "armed":
                return agreement.on_armed(rank, number)
            case "late":
                return agreement.on_late(rank, number, int(message["step"]))
            case "refused":
                return agreement.on_refused(number, dict(message["problems"]), rank)
            case "gate":
                return agreement.on_gate(rank, number, int(message["step"]))
            case "applied":
                return agreement.on_applied(rank, number, int(message["step"]))
            case _:
                return []

    def _on_hello(self, worker: LocalWorker, undecided: int | None) -> None:
        log.info("rank %d of %d (pid %d) is here", worker.rank, worker.member.world_size, worker.member.pid)
        for other in self._workers:
            if other.rank == worker.rank and other.incarnation != worker.incarnation and other.absent:
                self._on_gone(other, clean=False)  # replaced: it will hear so when it comes
        self._workers.add(worker)
        self._somebody.set()
        self._effects.start(self._register(worker))
        self._effects.start(self._office.stand())
        if self._listed:
            self._meet(worker)
        if undecided is not None:
            self._effects.look_up(undecided, self._teller(undecided))

    def _on_gone(self, worker: LocalWorker, *, clean: bool, last_step: int = -1) -> None:
        in_view = self._is_in_view(worker)
        self._workers.remove(worker)
        self._roster.save(self._workers)
        worker.connection.close()
        if in_view:
            agreement, rank = self._agreement, worker.rank
            self._do(agreement.on_left(rank, last_step) if clean else agreement.on_died(rank))
        self._effects.start(self._registry.forget(worker))
        self._effects.start(self._office.stand())
        if not len(self._workers):
            self._empty.set()

    def _is_in_view(self, worker: LocalWorker) -> bool:
        return self._workers.in_view(self._state.view, self._name).get(worker.rank) is worker

    # -- what etcd says ---------------------------------------------------------------------------------------------

    async def _follow_state(self) -> None:
        while True:
            try:
                left = await self._client.get(self._keys.left_of(self._name), timeout_s=TICK_S)
                self._left_before = Left.decode_or_none(left.value if left is not None else None)
                await self._state.mirror.run()
            except EtcdUnavailable as error:
                self._unlisted.met(error)
                self._tell_waiting(str(error), urgent=True)
                await asyncio.sleep(TICK_S)

    def _on_state(self, events: tuple[Event, ...]) -> None:
        first, self._listed = not self._listed, True
        self._unlisted.over()
        view, plan = self._state.view, self._state.plan
        if view is not None and view.number != self._agreement.view_number:
            self._do(self._agreement.on_view(view, self._left_before))
            for worker in self._workers:
                self._meet(worker)
            self._effects.start(self._register_all())
        if not first:
            for number, decision in _decisions(events, self._keys):
                if plan is not None and number < plan.number:
                    self._do(self._agreement.on_decision(number, decision))
        if plan is not None:
            self._do(self._agreement.on_plan(plan))
            if self._state.decision is not None and self._agreement.decision is None:
                self._do(self._agreement.on_decision(plan.number, self._state.decision))
        for worker in self._workers:
            refused = self._state.refused.get(worker.incarnation)
            if refused is not None:
                self._part_with(worker, "refused", refused.reason)
        self._workers.tell_leader(self._state.leader)
        self._office.wake()
        early, self._early = self._early, []
        for say in early:
            say()

    def _meet(self, worker: LocalWorker) -> None:
        """Tells a worker where it stands in the view: in it, waiting for it, or replaced."""
        view = self._state.view
        if view is None:
            return
        if self._is_in_view(worker):
            start = view.start.model_dump()
            kind = "welcome" if not worker.view else "view"
            if worker.view != view.number:
                worker.view = view.number
                self._roster.save(self._workers)
            worker.tell({"t": kind, "view": view.number, "start": start, "node": self._name})
            self._do(self._agreement.on_joined(worker.rank))
        elif worker.view and view.number > worker.view:
            self._part_with(worker, "evicted", _evicted(worker, view))

    def _part_with(self, worker: LocalWorker, kind: str, text: str) -> None:
        log.warning("rank %d: %s", worker.rank, text)
        worker.tell({"t": "failure", "kind": kind, "text": text})
        self._workers.remove(worker)
        self._roster.save(self._workers)
        self._effects.start(self._registry.forget(worker))
        self._effects.start(self._office.stand())
        if not len(self._workers):
            self._empty.set()

    async def _on_lease(self, lease_id: int) -> None:
        await self._register_all()
        await self._office.stand()

    async def _register_all(self) -> None:
        """Also in a new view: a registration says whether its worker has trained before."""
        try:
            await self._registry.register_all()
        except EtcdDenied as error:
            self._deny(error)

    async def _register(self, worker: LocalWorker) -> None:
        try:
            await self._registry.register(worker)
        except EtcdDenied as error:
            self._deny(error)

    def _deny(self, error: EtcdDenied) -> None:
        """etcd lets us read but not write: those who wait hear it at once, those who train go on training."""
        log.error("%s", error)
        for worker in self._workers:
            if not worker.view:
                self._part_with(worker, "denied", str(error))

    # -- carrying out -----------------------------------------------------------------------------------------------

    def _do(self, actions: list[NodeAction]) -> None:
        local = self._workers.in_view(self._state.view, self._name)
        for action in actions:
            match action:
                case TellPlan(rank, plan) if rank in local:
                    values = plan.model_dump()["values"]
                    local[rank].tell({"t": "plan", "n": plan.number, "gate": plan.gate, "values": values})
                case TellDecision(rank, number, decision) if rank in local:
                    local[rank].tell({"t": "decision", "n": number, "commit": decision.commit})
                case WriteAck(number, ack):
                    self._effects.write(acknowledge(self._keys, number, ack))
                case WriteReceipt(number, receipt):
                    self._effects.write(write_receipt(self._keys, number, receipt))
                case WriteLeft(left):
                    self._effects.write(write_left(self._keys, self._name, left))
                case Settle(number, decision):
                    self._effects.settle(number, decision, self._teller(number))
                case _:
                    pass  # for a worker that is not connected: it hears it when it is

    def _teller(self, number: int) -> Callable[[Decision], None]:
        def tell(decision: Decision) -> None:
            self._do(self._agreement.on_decision(number, decision))

        return tell

    def _tell_waiting(self, text: str, *, missing: tuple[int, ...] = (), urgent: bool = False) -> None:
        for worker in self._workers:
            if not worker.view:
                worker.tell({"t": "waiting", "text": text, "missing": list(missing), "urgent": urgent})

    # -- once a second ----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._pace.observe(*self._workers.furthest())
            self.on_tick()
            self._effects.start(self._office.stand())  # our candidate key may have been deleted
            self._note_link()
            self._give_up_on_the_dead()
            if isinstance(self._session.trouble, EtcdFull):
                self._space.refused(self._session.trouble)
            if self._linked:
                text, missing = _waiting_for(self._state)
                self._tell_waiting(self._space.problem or text, missing=missing)
            if not await self._metrics.write(self._workers, self._state.view, self._pace.step_time_s):
                self._effects.start(self._register_all())

    def _give_up_on_the_dead(self) -> None:
        """An agent that never reached etcd and has no living worker left has nothing to wait for."""
        living = [worker for worker in self._workers if not worker.connection.closed]
        if self._listed or living or not len(self._workers):
            self._dead_since = None
            return
        now = time.monotonic()
        self._dead_since = self._dead_since or now
        if now - self._dead_since > LEAVE_S:
            for worker in self._workers:
                self._workers.remove(worker)
            self._empty.set()

    async def _beat(self) -> None:
        """Shows the workers that this agent runs: one that is stopped or stuck is replaced by them."""
        while True:
            for worker in self._workers:
                worker.beat(time.monotonic())
            await asyncio.sleep(TICK_S)

    def _measure(self) -> Pace:
        step, at = self._workers.furthest()
        self._pace.observe(step, at)
        known = step >= 0 and self._pace.step_time_s > 0
        return Pace(step if known else None, self._pace.step_time_s, max(0.0, time.monotonic() - at))

    def _note_link(self) -> None:
        linked = self._client.link == "connected"
        if linked == self._linked:
            return
        self._linked = linked
        text = (
            "etcd answers again"
            if linked
            else "etcd does not answer: training goes on with the agreed values, changes wait"
        )
        log.warning("%s", text)
        self._note(text)

    def _note(self, text: str) -> None:
        """For people who look at the training's own log: through one rank of the node."""
        for worker in list(self._workers)[:1]:
            worker.tell({"t": "note", "level": logging.WARNING, "text": text})

    async def _wait_empty(self) -> None:
        try:
            async with asyncio.timeout(FIRST_WORKER_S):
                await self._somebody.wait()
        except TimeoutError:
            log.warning("no worker came in %.0f s", FIRST_WORKER_S)
            return
        while len(self._workers):
            self._empty.clear()
            await self._empty.wait()
        self.on_empty()
        # Leaving must not hang on anything: what is left in etcd ends with the lease.
        asyncio.get_running_loop().call_later(LEAVE_S, os._exit, 1)


def _decisions(events: tuple[Event, ...], keys: Keys) -> Iterator[tuple[int, Decision]]:
    for event in events:
        key = event.kv.key
        if event.kind == "put" and key.startswith(keys.plans) and key.endswith("/decision"):
            number = key.removeprefix(keys.plans).removesuffix("/decision")
            decision = Decision.decode_or_none(event.kv.value)
            if decision is not None and number.isdigit():
                yield int(number), decision


def _evicted(worker: LocalWorker, view: View) -> str:
    if worker.rank >= view.world_size:
        return (
            f"rank {worker.rank} is no part of view {view.number}, which has {view.world_size} ranks: stop this process"
        )
    return (
        f"rank {worker.rank} was taken over by another process that joined later (view {view.number}): stop this "
        "process; if both were meant to run, give each its own RANK, as torchrun does"
    )


def _waiting_for(state: RunState) -> tuple[str, tuple[int, ...]]:
    forming = state.forming
    if state.leader is None:
        return "a leader to be elected", ()
    if forming is None or not forming.missing:
        return "the view to be formed", ()
    return f"ranks {forming.missing} of {forming.world_size} to join", forming.missing_ranks
