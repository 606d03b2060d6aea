"""A whole run in one process: the agents' and workers' own code, with etcd, sockets, time and training modelled.

What is real: Node, with all that it wires (agreement, election, leadership, registry, effects, mirrors), and Run, with
its gate. What is not: etcd, the network, the sockets, the clock, and that a worker at a gate blocks its process.
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
from model_link import Delays, ModelConnection, ModelLink
from model_training import Training
from pydantic import Field, field_validator
from virtual_loop import VirtualLoop

from instep.agent.node import Node
from instep.agent.worker import LocalWorker
from instep.coordination.keys import Keys
from instep.coordination.records import Agreed, Decision, Epoch, Plan, View
from instep.errors import ConfigError, InstepError
from instep.etcd import Client, Op
from instep.names import INCARNATION_LENGTH
from instep.worker.gate import Apply
from instep.worker.hyper import Codec, Hyperparameters, fixed
from instep.worker.link import AgentLink, LinkLost
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
    """Where the connection of a worker will be that has not met this agent yet."""

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


class ModelRoster:
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
        self.roster = ModelRoster(self)
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
        """The agent dies where it stands; what it sent to etcd may still arrive there."""
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
        self.node = Node(cast(Client, self.client), self._cluster.keys, self.name, TTL_S, self.roster)
        self.node.on_empty = self._stop_accepting
        self.accepts = True
        self._serving = self.loop.create_task(self.node.run())
        self._serving.add_done_callback(self._ended)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        """The agent's process has ended of itself; what it waited for from etcd is still under way."""
        if serving is not self._serving:
            return
        self.crash(keep_down=True)
        if not serving.cancelled():
            serving.result()


class AtGate(Exception):
    """The worker's process is blocked before a step until it hears a decision."""


class SteppedRun(Run[Any]):
    """A Run that says so where it would block at a gate: `boundary` is then called again."""

    asked: tuple[ModelConnection | None, int] = (None, 0)
    model_link: ModelLink

    def _await_decision(self, number: int, step: int) -> None:
        if self._conversation.failure is not None:
            return
        link = self.model_link
        with contextlib.suppress(LinkLost):
            if not link.connected and link.try_connect():
                self._conversation.introduce()
            if link.connected and self.asked != (link.connection, number):
                link.send({"t": "gate", "n": number, "step": step, **self._agreement.promised()})
                self.asked = (link.connection, number)
        raise AtGate

    def _stand(self, step: int) -> None:
        raise AtGate

    def _apply(self, due: Apply, step: int) -> int:
        self.on_apply(due.number)
        return super()._apply(due, step)

    on_apply: Callable[[int], None]


class Worker:
    """One training process, driven boundary by boundary."""

    def __init__(self, cluster: Cluster, rank: int, incarnation: str, host: Host) -> None:
        self.rank = rank
        self.incarnation = incarnation
        self.host = host
        self.delays = Delays()
        self.alive = True
        self.step = 0
        """The step it runs next, or is in; 0 before it has joined."""
        self.inside = False
        self.error: InstepError | None = None
        self.link = ModelLink(host, self.delays)
        self._cluster = cluster
        self.run = SteppedRun(
            "m",
            cast(AgentLink, self.link),
            Codec(Hyper),
            rank=rank,
            world_size=cluster.world_size,
            incarnation=incarnation,
            take_over=True,
        )
        self.run.model_link = self.link
        self.run.on_apply = cluster.check_applied

    def __repr__(self) -> str:
        where = "in" if self.inside else "before"
        return f"Worker(rank {self.rank}, {self.incarnation}, {where} step {self.step}, {self.run!r})"

    def advance(self) -> bool:
        """Does the next thing it can do: join, enter a step, or come out of it. False when it has to wait."""
        if not self.alive:
            return False
        try:
            if self.step == 0:
                return self._join()
            return self._come_out() if self.inside else self._enter_step()
        except AtGate:
            return False
        except ConfigError as error:
            raise AssertionError(f"{self} was given values that it had refused") from error
        except InstepError as error:
            self.error = error
            self._cluster.kill(self, lose_part=False)
            return False

    def values(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.run.config.model_dump())

    def _join(self) -> bool:
        """As instep.worker.join waits for the view."""
        if not self.listen():
            return False
        self.step = self._cluster.training.enter(self.rank)
        return True

    def listen(self) -> bool:
        """Before it has joined: True when it has."""
        conversation = self.run._conversation
        if not conversation.is_joined():
            with contextlib.suppress(LinkLost):
                if not self.link.connected and self.link.try_connect():
                    conversation.introduce()
                conversation.hear(self.link.receive(), step=0)
        return conversation.is_joined()

    def _enter_step(self) -> bool:
        self._cluster.loop.advance(STEP_S)
        self.run.boundary(self.step)
        if self.run.stopped is not None:
            self._cluster.check_stopped(self)
            self._cluster.leave(self)
            return True
        self._cluster.check_runs(self)
        self._cluster.training.run(self.rank, self.step, {**self.values(), "save": self.run.checkpoint_requested})
        self.inside = True
        return True

    def _come_out(self) -> bool:
        training = self._cluster.training
        if not training.may_finish(self.step):
            return False
        training.finish(self.step)
        self.inside = False
        self.step += 1
        return True


class Cluster:
    """The run, what can happen to it, and what must hold whatever happens."""

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
        self._checked = 0
        self._committed: set[int] = set()
        """Plans that have ever been committed, in whatever history."""
        self.went_back = 0
        """How often etcd has been put back."""
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
        """A new process for the rank. One that still lives is out of the training at once, but does not know it."""
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
        """One that was replaced comes to its next boundary; having heard of it, it ends."""
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
        self.check_history()
        self.went_back += 1
        self.store.go_back(revision)
        self._checked = len(self.store.history)
        self.loop.settle()

    @property
    def settled(self) -> bool:
        """Whether etcd holds what the ranks hold, as far as this can be told from outside."""
        if not self.went_back:
            return True
        epoch = Epoch.decode_or_none(self.value(self.keys.epoch))
        held = [worker.run._agreement.agreed for worker in self.ever if worker.alive and worker.run.view]
        agreed = self.agreed()
        same = agreed is not None and all(item and item["digest"] in (agreed.digest, agreed.parent) for item in held)
        return not held or (same and (epoch is None or epoch.settled))

    def epoch_problem(self) -> str | None:
        epoch = Epoch.decode_or_none(self.value(self.keys.epoch))
        return epoch.problem if epoch is not None else None

    def _expire_leases(self) -> None:
        """As etcd does, twice a second."""
        self.store.expire(self.loop.time() - TTL_S)
        self.loop.call_later(0.5, self._expire_leases)

    def _out_of_training(self, worker: Worker, *, lose_part: bool) -> None:
        if worker.step:
            self.training.die(worker.rank, worker.step if worker.inside else None, lose_part=lose_part)

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check_applied(self, number: int) -> None:
        """A value is applied only when its plan was committed."""
        self.check_history()
        assert number in self._committed, f"plan {number} was applied undecided or aborted"

    def check_runs(self, worker: Worker) -> None:
        """A rank that is in the training runs no step that a pause or a stop has taken from it."""
        agreed = self.agreed()
        if agreed is None or worker in self.evicting or not self._is_member(worker) or not self.settled:
            return
        paused_at, ends_at = agreed.course.paused_at, agreed.course.ends_at
        assert paused_at is None or worker.step < paused_at, f"{worker} runs step {worker.step}, paused at {paused_at}"
        assert ends_at is None or worker.step < ends_at, f"{worker} runs step {worker.step}, stopped at {ends_at}"

    def check_stopped(self, worker: Worker) -> None:
        """Ranks end where it was agreed, not before."""
        agreed = self.agreed()
        if agreed is not None and self._is_member(worker) and self.settled:
            ends_at = agreed.course.ends_at
            assert ends_at is not None, f"{worker} ended, and nobody has agreed on that"
            assert worker.step >= ends_at, f"{worker} ended before step {worker.step}, stopped at {ends_at}"

    def _is_member(self, worker: Worker) -> bool:
        view = self.view()
        return view is not None and view.incarnations().get(worker.rank) == worker.incarnation

    def check_history(self) -> None:
        """A decision, once there, never changes; plans are created once, and one at a time."""
        for batch in self.store.history[self._checked :]:
            for event in batch.events:
                if not event.kv.key.startswith(self.keys.plans) or event.kind != "put":
                    continue
                assert event.kv.version == 1, f"{event.kv.key} was written again"
                number = int(event.kv.key.removeprefix(self.keys.plans).split("/")[0])
                if event.kv.key.endswith("/decision"):
                    if Decision.decode(event.kv.value).commit:
                        self._committed.add(number)
                elif number > 1 and Plan.decode(event.kv.value).restored is None and not self.went_back:
                    before = self.store.get(self.keys.decision(number - 1))
                    decided = before is not None and before.mod_revision < batch.revision
                    assert decided, f"plan {number} came too early"
        self._checked = len(self.store.history)

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
