"""A whole run in one process: the agents' and workers' own code, with etcd, sockets, time and training modelled.

What is real: Node, with all that it wires (agreement, election, leadership, registry, effects, informers), and Run,
with its gate. What is not: etcd, the network, the sockets, the clock, and that a worker at a gate blocks its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self, cast

from model_client import ModelClient, Request
from model_etcd import ModelEtcd
from model_history import BARRIER, HistoryChecks
from model_link import Delays, ModelConnection, ModelLink
from model_training import Place, Training
from pydantic import Field, field_validator
from virtual_loop import VirtualLoop

from instep.agent.name import NodeName
from instep.agent.node import Node
from instep.agent.persisted_workers import PersistedWorkers
from instep.agent.workers import LocalWorker
from instep.errors import ConfigError, InstepError
from instep.etcd import Client, Listing, Op
from instep.names import INCARNATION_LENGTH
from instep.protocol import checkpoints
from instep.protocol.checkpoints import CheckpointReads, CommitOutcome
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed, Attempts, Epoch, Leader, Manifest, Plan, Resume, View
from instep.recipes.fence import Fence
from instep.wire.messages import AwaitOffer, Offer
from instep.worker.agent_connection import AgentConnection, ConnectionLost
from instep.worker.applier import Applier
from instep.worker.gate import Apply
from instep.worker.hyper import Codec, Hyperparameters, fixed
from instep.worker.run import Run

TTL_S = 10
STEP_S = 0.01
NOT_FOR_WORKERS = 0.5
"""A value of `clip` that the schema takes and the script's own validator does not."""


class Hyper(Hyperparameters):
    lr: float = Field(0.1, gt=0, le=1)
    clip: float = Field(1.0, ge=0)
    size: int = fixed(8)

    @field_validator("clip")
    @classmethod
    def _usable(cls, value: float) -> float:
        if value == NOT_FOR_WORKERS:
            raise ValueError("not with this script")
        return value


class ModelAbsentee:
    """The place for the connection of a worker that has not connected to this agent yet."""

    pid = 1
    words = None
    ending: str | None = None

    def __init__(self, incarnation: str, on_died: Callable[[Any], None]) -> None:
        self.incarnation = incarnation
        self.closed = False
        self._on_died = on_died

    def send(self, message: object) -> None: ...

    def close(self) -> None:
        self.closed = True

    def die(self) -> None:
        if not self.closed:
            self.close()
            self._on_died(self)


class ModelPersistedWorkers(PersistedWorkers):
    """The file that outlives agents."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._kept: list[LocalWorker] = []

    def save(self, workers: Iterable[LocalWorker]) -> None:
        self._kept = [replace(worker) for worker in workers if worker.view]

    def load(self, node: str, on_died: Callable[[Any], None]) -> list[LocalWorker]:
        found = []
        for kept in self._kept:
            if self._host.lives(kept.member.incarnation):
                absentee = ModelAbsentee(kept.member.incarnation, on_died)
                self._host.absentees.append(absentee)
                worker = LocalWorker(kept.member, kept.schema, cast(Any, absentee), view=kept.view, absent=True)
                worker.agreed, worker.plan, worker.told, worker.epoch = kept.agreed, kept.plan, kept.told, kept.epoch
                worker.heard = kept.heard
                found.append(worker)
        return found


class Host:
    """One node: its agent, if there is one, and the connections that the agent has."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name = name
        self.loop = cluster.loop
        self.client: ModelClient
        self.node: Node | None = None
        self.connections: list[ModelConnection] = []
        self.absentees: list[ModelAbsentee] = []
        self.persisted_workers = ModelPersistedWorkers(self)
        self.may_start = True
        self.accepts = True
        self._cluster = cluster
        self._serving: asyncio.Task[None] | None = None

    def listens(self) -> bool:
        """Whether there is an agent to connect to; one is started if there may be."""
        if self.node is None and self.may_start:
            self.loop.call_soon(self._start)
            self.loop.settle()
        return self.node is not None and self.accepts

    def lives(self, incarnation: str) -> bool:
        return any(worker.incarnation == incarnation and worker.alive for worker in self._cluster.ever)

    def see_death(self, incarnation: str) -> None:
        """Of a worker that this agent has not met: its pid tells."""
        for absentee in self.absentees:
            if absentee.incarnation == incarnation:
                self.loop.call_soon(absentee.die)

    def _stop_accepting(self) -> None:
        self.accepts = False

    def crash(self, *, keep_down: bool) -> None:
        """The agent dies at once; what it sent to etcd may still arrive."""
        if self.node is None:
            return
        self.client.dead = True
        self.client.wake()
        self._cluster.strays.extend(self.client.pending)
        self.client.pending.clear()
        self._cluster.dead_clients.append(self.client)
        self._cluster.graveyard.append((self.node, self._serving, self.client))
        for connection in self.connections:
            connection.break_off(keep_down=keep_down)
        self.connections.clear()
        self.absentees.clear()
        self.node, self._serving = None, None

    def _start(self) -> None:
        self.client = ModelClient(self._cluster.store, self._cluster.keys.root)
        name = NodeName(self.name, claim=self.name)
        self.node = Node(cast(Client, self.client), self._cluster.keys, name, TTL_S, self.persisted_workers)
        self.node.on_empty = self._stop_accepting
        self.accepts = True
        self._serving = self.loop.create_task(self.node.run())
        self._serving.add_done_callback(self._ended)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        """The agent has exited; its requests to etcd are still under way."""
        if serving is not self._serving:
            return
        self.crash(keep_down=True)
        if not serving.cancelled():
            serving.result()


class AtGate(Exception):
    """The worker is blocked before a step until it receives a decision."""


class SteppedApplier(Applier):
    """Raises instead of blocking at a gate: `boundary` is then called again."""

    asked: tuple[ModelConnection | None, int] = (None, 0)
    model_link: ModelLink
    on_apply: Callable[[int], None]
    on_back: Callable[[int], None]

    def _await_decision(self, number: int, step: int) -> None:
        if self._session.failure is not None:
            return
        link = self.model_link
        with contextlib.suppress(ConnectionLost):
            if not link.connected and link.try_connect():
                self._session.introduce()
            if link.connected and self.asked != (link.connection, number):
                link.send(self._agreement.at_gate(number, step))
                self.asked = (link.connection, number)
        raise AtGate

    def _wait_while_paused(self, step: int) -> None:
        raise AtGate

    def _apply(self, due: Apply, step: int) -> int:
        self.on_apply(due.number)
        before = self._agreement.back
        continues_at = super()._apply(due, step)
        if self._agreement.back != before:
            self.on_back(continues_at)
        return continues_at


class SteppedRun(Run[Any]):
    """A Run with such an applier."""

    def step_with(self, link: ModelLink, on_apply: Callable[[int], None], on_back: Callable[[int], None]) -> None:
        applier = SteppedApplier(
            self._session,
            self._agreement,
            self._preemption,
            run=self.name,
            patience_s=0.0,
            on_return=self._return_to,
            while_paused=self._while_paused,
        )
        applier.model_link, applier.on_apply, applier.on_back = link, on_apply, on_back
        self._applier = applier


class Worker:
    """One training process, driven boundary by boundary."""

    def __init__(self, cluster: Cluster, rank: int, incarnation: str, host: Host) -> None:
        self.rank = rank
        self.incarnation = incarnation
        self.host = host
        self.delays = Delays()
        self.alive = True
        self.step = 0
        """The step that it runs next, or is in; 0 before it has joined."""
        self.inside = False
        self.at_barrier = False
        self._verified: set[tuple[int, str]] | None = None
        """What this worker has verified; None before it has asked what to resume from."""
        self._answered: object = None
        self.error: InstepError | None = None
        self.link = ModelLink(host, self.delays)
        self._cluster = cluster
        self.run = SteppedRun(
            "m",
            cast(AgentConnection, self.link),
            Codec(Hyper),
            rank=rank,
            world_size=cluster.world_size,
            incarnation=incarnation,
            take_over=True,
        )
        self.run.step_with(self.link, cluster.check_applied, self._go_back)
        self.run.on_restore(lambda manifest: None)

    def __repr__(self) -> str:
        where = "in" if self.inside else "before"
        return f"Worker(rank {self.rank}, {self.incarnation}, {where} step {self.step}, {self.run!r})"

    def advance(self) -> bool:
        """Performs its next act: joins, enters a step, or leaves it. False if it has to wait."""
        if not self.alive:
            return False
        try:
            if self.step == 0:
                return self._join()
            return self._come_out() if self.inside else self._enter_step()
        except AtGate:
            return False
        except ConfigError as error:
            if not self.step:  # a start with values that no worker could try in time
                self.error = error
                self._cluster.kill(self, lose_part=False)
                return False
            raise AssertionError(f"{self} was given values that it had refused") from error
        except InstepError as error:
            self.error = error
            self._cluster.kill(self, lose_part=False)
            return False

    def values(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.run.config.model_dump())

    def _join(self) -> bool:
        """Waits for the view as instep.worker.join does; the script then resumes from a checkpoint."""
        if not self.listen():
            return False
        resumed: int | None = None
        if self._cluster.resumes:
            self._hear()
            offer = self._look_at_offer()
            if offer is None:
                return False
            resumed = offer.manifest.step if offer.manifest is not None else None
        restored = self._cluster.checks.restored.get(self.back, 0)
        self.step = self._cluster.training.enter(self.rank, self.back, resumed=resumed, restored=restored)
        return True

    def _look_at_offer(self) -> Offer | None:
        """The checkpoint to resume from, once it is agreed on, as Checkpoints.resume returns it."""
        checkpoints, session, checks = self.run.checkpoints, self.run._session, self._cluster.checks
        inbox = session.inbox
        if self._verified is None:
            self._verified = set()
            inbox.drop_offer()
            session.send(inbox.repeat_to_agents("resume", AwaitOffer()))
        offer = inbox.offer
        if offer is None or offer is self._answered:
            return None
        self._answered = offer
        if not offer.final:
            assert offer.id is not None
            is_good = (self.rank, offer.id) not in self._cluster.damaged
            checks.answers[offer.view, offer.id][self.rank] = is_good
            checkpoints._vote(offer, self._verified, lambda manifest: None if is_good else "a part is damaged")
            return None
        checks.check_resumed(offer)
        checkpoints._resumed(offer, self._verified, lambda manifest: None)
        inbox.stop_repeating("resume", "vote")
        return offer

    def listen(self) -> bool:
        """Before it has joined: True when it has."""
        session = self.run._session
        if not session.is_joined():
            with contextlib.suppress(ConnectionLost):
                if not self.link.connected and self.link.try_connect():
                    session.introduce()
                session.process(self.link.receive(), step=0)
        return session.is_joined()

    def _hear(self) -> None:
        """Raises the failure, if there is one."""
        session = self.run._session
        with contextlib.suppress(ConnectionLost):
            if not self.link.connected and self.link.try_connect():
                session.introduce()
            session.process(self.link.receive(), self.run._next_step())
        if session.failure is not None:
            raise session.failure

    @property
    def back(self) -> int:
        """The last restore that this worker has followed."""
        return self.run._agreement.back

    @property
    def place(self) -> Place:
        return Place(self.back, self.step)

    def _go_back(self, continues_at: int) -> None:
        self.step = continues_at
        self._cluster.training.go_back(self.rank, self.place)

    def _enter_step(self) -> bool:
        self._cluster.loop.advance(STEP_S)
        self.step = self.run.boundary(self.step)
        if self.run.stopped is not None:
            self._cluster.check_stopped(self)
            self._cluster.leave(self)
            return True
        self._cluster.check_runs(self)
        values = {**self.values(), "save": self.run.checkpoint_requested}
        self._cluster.training.run(self.rank, self.place, values)
        self.inside = True
        if self._cluster.meetings.get(self.place, 0) is None:
            self._call_barrier()
        return True

    def _call_barrier(self) -> None:
        """Calls the barrier in the step, as Run.barrier does."""
        checks, session = self._cluster.checks, self.run._session
        checks.check()
        checks.arrived.add(self.incarnation)
        self.at_barrier = True
        called = session.inbox.barrier.enter(BARRIER, session.view)
        session.send(session.inbox.repeat_to_agents("barrier", called))

    def _passes_barrier(self) -> bool:
        """Also when it gives up: the others have passed it without this worker, or were taken back to a checkpoint."""
        cluster, session = self._cluster, self.run._session
        self._hear()
        if session.inbox.barrier.name is None:
            number = cluster.meetings[self.place] = session.inbox.barrier._after
            cluster.checks.check_passed(self.incarnation, number)
        else:
            number = cluster.meetings[self.place] or 0
            is_counted = not number or self.incarnation in cluster.checks.released[number]
            if is_counted and all(place.back <= self.back for place in cluster.training.started.values()):
                return False
            session.send(session.inbox.barrier.leave())
        session.inbox.stop_repeating("barrier")
        self.at_barrier = False
        return True

    def _come_out(self) -> bool:
        training = self._cluster.training
        if self.at_barrier and not self._passes_barrier():
            return False
        if not training.may_finish(self.place):
            return False
        training.finish(self.place)
        self.inside = False
        self.step += 1
        return True


class Cluster:
    """The run, the events that can happen to it, and what must always hold."""

    def __init__(self, layout: tuple[tuple[int, ...], ...], *, lockstep: bool) -> None:
        self.loop = VirtualLoop()
        self.store = ModelEtcd(self.loop.time)
        self.keys = Keys("/training", "m")
        self.world_size = sum(len(ranks) for ranks in layout)
        self.training = Training(self.world_size, lockstep=lockstep)
        self.hosts = [Host(f"n{i}", self) for i in range(len(layout))]
        self.strays: list[Request[Any]] = []
        self.dead_clients: list[ModelClient] = []
        self.graveyard: list[object] = []
        self.evicting: list[Worker] = []
        self.ever: list[Worker] = []
        self._incarnations = 0
        self.checks = HistoryChecks(self.store, self.keys)
        self.resumes = lockstep
        """Whether the script asks what to resume from."""
        self.damaged: set[tuple[int, str]] = set()
        """Ranks and the checkpoints that they cannot load."""
        self.meetings: dict[Place, int | None] = {}
        """Steps in which the script calls a barrier, and the release by which ranks have passed it."""
        self.workers: dict[int, Worker] = {}
        self.loop.call_later(0.5, self._expire_leases)
        for host, ranks in zip(self.hosts, layout, strict=True):
            for rank in ranks:
                self.start(rank, host)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for host in self.hosts:
            host.crash(keep_down=False)
        self.loop.shut()

    # -- what happens -----------------------------------------------------------------------------------------------

    def start(self, rank: int, host: Host) -> Worker:
        """Starts a new process for the rank. An older one leaves the training at once, without knowing it."""
        former = self.workers.get(rank)
        if former is not None and former.alive:
            self.evicting.append(former)
            self._out_of_training(former, lose_part=True)
        self._incarnations += 1
        worker = self.workers[rank] = Worker(self, rank, f"{self._incarnations:0{INCARNATION_LENGTH}d}", host)
        self.ever.append(worker)
        self.go(worker)
        return worker

    def go(self, *workers: Worker) -> bool:
        moved = False
        for worker in workers or tuple(self.workers.values()):
            moved |= worker.advance()
            self.loop.settle()
        return moved

    def kill(self, worker: Worker, *, lose_part: bool) -> None:
        worker.alive = False
        if worker in self.evicting:
            self.evicting.remove(worker)
        else:
            self._out_of_training(worker, lose_part=lose_part)
        worker.link.die()
        worker.host.see_death(worker.incarnation)
        self.loop.settle()

    def look(self, evicted: Worker) -> None:
        """A replaced worker reaches its next boundary; it ends when it knows that it was evicted."""
        try:
            if evicted.run.view or evicted.listen():
                evicted.step += 1
                self.loop.advance(STEP_S)
                evicted.run.boundary(evicted.step)
        except AtGate:
            pass
        except InstepError:
            self.kill(evicted, lose_part=False)
        self.loop.settle()

    def leave(self, worker: Worker) -> None:
        """Its loop has ended."""
        worker.run.close()
        worker.alive = False
        self.training.leave(worker.rank)
        worker.link.die()
        worker.host.see_death(worker.incarnation)
        self.loop.settle()

    def cut(self, worker: Worker) -> None:
        """The worker drops its connection; it connects again at its next boundary."""
        worker.link.drop()
        self.loop.settle()

    def put(self, values: dict[str, str], author: str | None = None) -> int:
        ops = [Op.put(self.keys.config_of(name), text) for name, text in values.items()]
        if author is not None:
            change = {"id": f"c{self.store.revision}", "names": list(values), "author": author}
            ops.append(Op.put(self.keys.change(str(change["id"])), json.dumps(change)))
        revision = self.store.txn((), ops).revision
        self.loop.settle()
        return revision

    def command(self, kind: str, **fields: object) -> None:
        name = f"d{self.store.revision}"
        self.store.txn((), [Op.put(self.keys.command(name), json.dumps({"kind": kind, **fields}))])
        self.loop.settle()

    def go_back(self, revision: int) -> None:
        """etcd is restored from a backup made at that revision; 1: it is empty."""
        self.checks.check()
        self.store.go_back(revision)
        self.checks.go_back()
        self.loop.settle()

    def save(self) -> Manifest | None:
        """The leader commits a checkpoint of the last finished step."""
        leader = Leader.decode_or_none(self.value(self.keys.leader))
        saver = self.workers.get(leader.rank) if leader is not None else None
        done = self.training.finished
        if leader is None or saver is None or (saver.incarnation, saver.back) != (leader.incarnation, done.back):
            return None
        manifest = Manifest(
            id=f"{done.step}-{leader.token}",
            step=done.step,
            token=leader.token,
            path=f"/saved/{self.store.revision}",
            digest="d",
            view=saver.run.view,
            world_size=self.world_size,
            plan=saver.run._agreement.plan,
            rank=saver.rank,
            host=saver.host.name,
            node=saver.host.name,
            duration_s=1.0,
            committed_at="",
        )
        fence = Fence(leader.candidate, leader.token)
        looked = self.store.txn((), checkpoints.look(self.keys, manifest.id, fence)).results
        found = CheckpointReads(*(part.kvs[0] if part.kvs else None for part in looked if isinstance(part, Listing)))
        if checkpoints.outcome(manifest, fence, found) is not CommitOutcome.OPEN or found.manifest is not None:
            return None
        manifest = replace(manifest, lineage=self._lineage(found))
        txn = checkpoints.commit(self.keys, fence, manifest, found, announced=False)
        self.store.txn(txn.compares, txn.then)
        self.loop.settle()
        return manifest

    def _lineage(self, found: CheckpointReads) -> tuple[str, ...]:
        pointer, resume = found.newest, self.store.get(self.keys.resume)
        newest = self.value(self.keys.checkpoint(pointer.id)) if pointer is not None else None
        agreed_on = Resume.decode_or_none(resume.value) if resume is not None else None
        revision = resume.mod_revision if resume is not None else 0
        return checkpoints.lineage(found, Manifest.decode_or_none(newest), agreed_on, revision)

    @property
    def saved(self) -> dict[str, Manifest]:
        """The registered checkpoints by id."""
        found = (item for item in self.store.range(self.keys.checkpoints).kvs if item.key != self.keys.latest)
        return {manifest.id: manifest for item in found for manifest in [Manifest.decode(item.value)]}

    def forget(self, checkpoint_id: str) -> None:
        """As an operator does."""
        pointer = self.store.get(self.keys.latest)
        txn = checkpoints.take_off(self.keys, checkpoint_id, pointer, self.saved)
        self.store.txn(txn.compares, txn.then)
        self.loop.settle()

    def reset_attempts(self) -> None:
        """Resets the attempts as `instep reset` does."""
        counted = Attempts.decode_or_none(self.value(self.keys.attempts))
        if counted is not None and counted.total:
            self.store.txn((), [Op.put(self.keys.attempts, Attempts(view=counted.view).encode())])
            self.loop.settle()

    def meet(self) -> None:
        """Makes the script call a barrier in the step after the furthest one."""
        furthest = max(self.training.started.values())
        self.meetings.setdefault(furthest._replace(step=furthest.step + 1), None)

    @property
    def settled(self) -> bool:
        """Whether etcd has what the ranks hold, as far as an observer can tell."""
        if not self.checks.went_back:
            return True
        epoch = Epoch.decode_or_none(self.value(self.keys.epoch))
        held = [worker.run._agreement.agreed for worker in self.ever if worker.alive and worker.run.view]
        agreed = self.agreed()
        same = agreed is not None and all(item and item.digest in (agreed.digest, agreed.parent) for item in held)
        return not held or (same and (epoch is None or epoch.settled))

    def epoch_problem(self) -> str | None:
        epoch = Epoch.decode_or_none(self.value(self.keys.epoch))
        return epoch.problem if epoch is not None else None

    def _expire_leases(self) -> None:
        """Expires leases as etcd does, twice per second."""
        self.store.expire(self.loop.time() - TTL_S)
        self.loop.call_later(0.5, self._expire_leases)

    def _out_of_training(self, worker: Worker, *, lose_part: bool) -> None:
        if worker.step:
            lose_part |= worker.at_barrier  # before its part in the collective
            self.training.die(worker.rank, worker.place if worker.inside else None, lose_part=lose_part)

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check_applied(self, number: int) -> None:
        """A value is applied only when its plan was committed."""
        self.checks.check()
        assert number in self.checks.committed, f"plan {number} was applied undecided or aborted"

    def check_runs(self, worker: Worker) -> None:
        """A rank that trains runs no step that a pause or a stop forbids."""
        agreed = self.agreed()
        if agreed is None or worker in self.evicting or not self._is_member(worker) or not self.settled:
            return
        if worker.back < agreed.back:
            return  # it has not been taken back yet, and the step of the pause comes after that
        paused_at, ends_at = agreed.directive.paused_at, agreed.directive.ends_at
        assert paused_at is None or worker.step < paused_at, f"{worker} runs step {worker.step}, paused at {paused_at}"
        assert ends_at is None or worker.step < ends_at, f"{worker} runs step {worker.step}, stopped at {ends_at}"

    def check_stopped(self, worker: Worker) -> None:
        """Ranks end at the agreed step, not before."""
        agreed = self.agreed()
        if agreed is not None and self._is_member(worker) and self.settled and worker.back == agreed.back:
            ends_at = agreed.directive.ends_at
            assert ends_at is not None, f"{worker} ended, but that was not agreed"
            assert worker.step >= ends_at, f"{worker} ended before step {worker.step}, stopped at {ends_at}"

    def _is_member(self, worker: Worker) -> bool:
        view = self.view()
        return view is not None and view.incarnations().get(worker.rank) == worker.incarnation

    # -- what etcd says ---------------------------------------------------------------------------------------------

    def value(self, key: str) -> bytes | None:
        found = self.store.get(key)
        return found.value if found is not None else None

    def agreed(self) -> Agreed | None:
        return Agreed.decode_or_none(self.value(self.keys.agreed))

    def view(self) -> View | None:
        value = self.value(self.keys.view)
        return View.decode(value) if value is not None else None

    def plan(self, number: int) -> Plan | None:
        return Plan.decode_or_none(self.value(self.keys.plan(number)))
