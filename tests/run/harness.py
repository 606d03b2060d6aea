"""Runs of real training processes against a real etcd, and the records of what they did."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.harness.fork_server import ForkedProcess, ForkServer
from chaos.harness.processes import server_of

from etcd_gateway import read_keys
from instep.etcd import Client, Op
from instep.runtime import RuntimeFolder
from instep.settings import resolve
from instep.testing import EtcdCluster, EtcdServer

TRAINER = Path(__file__).with_name("trainer.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
PATIENCE_S = 60.0

Event = dict[str, Any]


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The condition's first true value; fails the test with `what` if there is none within the limit."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not seen in {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return value


class Trainer:
    """One worker process and all the events that it has reported."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        script: Path = TRAINER,
        fork_server: ForkServer | None = None,
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), **environment}
        self.process: subprocess.Popen[str] | ForkedProcess
        if fork_server is not None:
            self.process = fork_server.start(script, arguments, environment, new_session=script is not TRAINER)
        else:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=script is not TRAINER,  # as torchrun does
            )
        self.events: list[Event] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def said(self, event: str) -> list[Event]:
        return [item for item in list(self.events) if item["event"] == event]

    def wait_said(self, event: str, timeout_s: float = PATIENCE_S) -> Event:
        return self._wait_for(lambda: self.said(event) or self._ended(event), event, timeout_s)[-1]

    def _wait_for(self, condition: Callable[[], Any], what: str, timeout_s: float) -> Any:
        try:
            return wait_for(condition, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.events[-5:]} {self.errors[-20:]}") from None

    def _ended(self, event: str) -> None:
        if self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers):
            assert self.said(event), (
                f"ended with {self.process.returncode} without {event}: {self.events} {self.errors}"
            )

    def wait_config(self, timeout_s: float = PATIENCE_S, **values: Any) -> int:
        """The first step that ran with these values."""

        def seen() -> list[Event]:
            return [e for e in self.said("config") if all(e["config"].get(k) == v for k, v in values.items())]

        return int(self._wait_for(lambda: seen() or self._ended("config"), f"config {values}", timeout_s)[0]["step"])

    def finish(self, timeout_s: float = PATIENCE_S) -> int:
        code = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return code

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.finish()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class TrainingRun:
    """Trainers of one run on one or more nodes, each node with its own runtime folder."""

    def __init__(
        self,
        server: EtcdServer | EtcdCluster,
        folder: Path,
        *,
        namespace: str,
        ttl_s: int = 2,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.fork_server = fork_server
        """Starts the ranks that run the plain trainer. Without it each is an interpreter of its own."""
        self.server = server
        self.namespace = namespace
        self._folder = folder
        self._ttl_s = ttl_s
        self._stops = 0
        self.trainers: list[Trainer] = []
        self.extra_environment: dict[str, str] = {}

    def node(self, name: str) -> Path:
        path = self._folder / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def environment(self, node: str = "a") -> dict[str, str]:
        return {
            **self.server.environment(),
            "INSTEP_NAMESPACE": self.namespace,
            "INSTEP_RUNTIME_DIR": str(self.node(node)),
            "INSTEP_TTL_S": str(self._ttl_s),
            **self.extra_environment,
        }

    def start(
        self,
        rank: int,
        world_size: int,
        *arguments: str,
        node: str = "a",
        environment: Mapping[str, str] | None = None,
        script: Path = TRAINER,
        fork_server: ForkServer | None = None,
    ) -> Trainer:
        """`fork_server` starts another script than the plain trainer."""
        place = {"RANK": str(rank), "WORLD_SIZE": str(world_size), **(environment or {})}
        forks = script is TRAINER and "PYTHONPATH" not in place  # the fork server has imported Instep already
        trainer = Trainer(
            [f"--stop-file={self.stop_file}", *arguments],
            {**self.environment(node), **place},
            script,
            self.fork_server if forks else fork_server,
        )
        self.trainers.append(trainer)
        return trainer

    def start_all(self, world_size: int, *arguments: str, nodes: str = "a", script: Path = TRAINER) -> list[Trainer]:
        """Ranks spread over the nodes in blocks; returns when all have joined."""
        each = world_size // len(nodes)
        trainers = [
            self.start(rank, world_size, *arguments, node=nodes[min(rank // each, len(nodes) - 1)], script=script)
            for rank in range(world_size)
        ]
        for trainer in trainers:
            trainer.wait_said("joined")
        return trainers

    @property
    def stop_file(self) -> Path:
        return self._folder / f"stop-{self._stops}"

    def stop(self, *trainers: Trainer) -> list[Event]:
        """Lets the trainers end; returns the last event of each, after checking that they ended well."""
        self.stop_file.touch()
        self._stops += 1
        chosen = trainers or tuple(self.trainers)
        done = [trainer.wait_said("done") for trainer in chosen]
        for trainer in chosen:
            assert trainer.finish() == 0, trainer.errors
        return done

    def put(self, name: str, text: str, run: str = "gpt-a") -> None:
        self.server.etcdctl("put", "--", f"{self.namespace}/{run}/config/{name}", text)

    def put_together(self, run: str = "gpt-a", **values: object) -> None:
        """All values in one txn: one revision, one change."""
        puts = [Op.put(f"{self.namespace}/{run}/config/{k}", json.dumps(v)) for k, v in values.items()]

        async def write() -> None:
            async with Client(self.server.endpoints) as client:
                await client.txn([], puts)

        asyncio.run(write())

    def key(self, path: str, run: str = "gpt-a") -> Any:
        text = read_keys(self.server, f"{self.namespace}/{run}/{path}").get(f"{self.namespace}/{run}/{path}")
        return json.loads(text) if text else None

    def keys(self, path: str, run: str = "gpt-a") -> list[str]:
        return list(read_keys(self.server, f"{self.namespace}/{run}/{path}", prefix=True))

    def agent_pid(self, node: str = "a", run: str = "gpt-a") -> int:
        """The pid of the node's agent. Raises OSError if no agent listens."""
        pid = server_of(self.folder_of(node, run).socket)
        if pid is None:
            raise ConnectionRefusedError(f"no agent serves node {node}")
        return pid

    def folder_of(self, node: str = "a", run: str = "gpt-a") -> RuntimeFolder:
        environment = self.environment(node)
        settings = resolve(environ=environment)
        before = os.environ.get("INSTEP_RUNTIME_DIR")
        os.environ["INSTEP_RUNTIME_DIR"] = environment["INSTEP_RUNTIME_DIR"]
        try:
            return RuntimeFolder.of(run, settings)
        finally:
            if before is None:
                del os.environ["INSTEP_RUNTIME_DIR"]
            else:
                os.environ["INSTEP_RUNTIME_DIR"] = before

    def agent_log(self, node: str = "a", run: str = "gpt-a") -> str:
        return self.folder_of(node, run).log.read_text()

    def member_host(self, run: str = "gpt-a") -> str:
        """The host that the workers report."""
        key = self.keys("reports/members/0/", run)[0].removeprefix(f"{self.namespace}/{run}/")
        return str(self.key(key, run)["host"])

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.close()


def held_gil(training: TrainingRun, *arguments: str) -> tuple[Trainer, Callable[[], None]]:
    """Rank 1 of 2, on node b, once it holds its interpreter, and a function that lets it continue.

    It does so after a first change: a leader plans none before it has seen two boundaries of its node's ranks.
    """
    lock = training.node("b") / "gil"
    file = lock.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    trainer = training.start(1, 2, "--misbehave-at-change", f"--hold-gil={lock}", *arguments, node="b")
    trainer.wait_said("joined")
    training.put("clip", "2.5")
    trainer.wait_said("holding")

    def let_go() -> None:
        file.close()  # again does nothing
        trainer.wait_said("held")

    return trainer, let_go


@contextmanager
def open_plan(training: TrainingRun, *arguments: str) -> Iterator[OpenPlan]:
    """Rank 0 has promised a plan, its node has acked it, and rank 1 is stuck: nothing decides it but rank 0's gate.

    Both stay where they are until the block lets them go on, however slow the machine is. A plan whose gate rank 0
    reached before it heard of it was aborted: what is given is the next one.
    """
    hold = training.node("a") / "promised"
    pace = "--step-s=0.05"
    held = training.start(0, 2, f"--hold-promise={hold}", pace, *arguments)
    blocked, let_go = held_gil(training, pace)
    held.wait_config(clip=2.5)
    hold.touch()
    training.put("lr", "0.01")
    plan = int(held.wait_said("promised")["plan"])
    wait_for(lambda: training.keys(f"reports/acks/{plan}/"), "the ack of the node that is not stuck")
    try:
        yield OpenPlan(plan, held, blocked, hold.unlink, let_go)
    finally:
        hold.unlink(missing_ok=True)
        let_go()


@dataclass(frozen=True)
class OpenPlan:
    """The result of `open_plan`: the plan's number, both ranks, and functions that let each of them continue."""

    number: int
    held: Trainer
    stuck: Trainer
    go_to_gate: Callable[[], None]
    let_go: Callable[[], None]


def at_step(trainer: Trainer, step: int) -> dict[str, Any]:
    """The config that the trainer ran `step` with."""
    return next(e["config"] for e in reversed(trainer.said("config")) if e["step"] <= step)


def assert_in_step(*trainers: Trainer) -> None:
    """No step ran with two configs: the promise, checked on the trainers' records."""
    last = min(trainer.said("done")[-1]["step"] for trainer in trainers)
    changes = {event["step"] for trainer in trainers for event in trainer.said("config")}
    for step in sorted(step for step in changes if step < last):
        configs = [at_step(trainer, step) for trainer in trainers]
        assert all(config == configs[0] for config in configs), f"step {step} was run with {configs}"
