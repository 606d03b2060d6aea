"""Workers that execute commands one by one, each in its own process: `saver.py` on the other end of two pipes."""

from __future__ import annotations

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.harness.fork_server import ForkedProcess, ForkServer

from run.harness import PATIENCE_S, SOURCE, TrainingRun, wait_for

SCRIPT = Path(__file__).with_name("saver.py")


class Worker:
    """One process. `ask` waits for the answer, `tell` does not; answers come in the order of the commands."""

    def __init__(self, rank: int, process: subprocess.Popen[str] | ForkedProcess) -> None:
        self.rank = rank
        self.process = process
        self._number = 0
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.log: list[str] = []
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_log)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def tell(self, do: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self._number += 1
        self.process.stdin.write(json.dumps({"n": self._number, "do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        answer = self._answers.get(timeout=timeout_s)
        assert answer is not None, f"rank {self.rank} ended: {self.log[-20:]}"
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.tell(do, **arguments)
        return self.answer()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Team:
    """All workers of one run, on one node or more."""

    def __init__(
        self, training: TrainingRun, folder: Path, script: Path = SCRIPT, fork_server: ForkServer | None = None
    ) -> None:
        self.training = training
        self.folder = folder
        self.script = script
        self.prefix: tuple[str, ...] = ()
        """What starts the workers, if not the fork server."""
        self._fork_server = fork_server or training.fork_server
        self.workers: list[Worker] = []

    def join(self, nodes: str, **environment: str) -> list[Worker]:
        """One rank for each letter, on the node of that name; returns when all have joined."""
        team = [self.start(rank, len(nodes), node, environment) for rank, node in enumerate(nodes)]
        for worker in team:
            joined = worker.answer()
            assert "error" not in joined, joined
        return team

    def start(self, rank: int, world_size: int, node: str, environment: Mapping[str, str] | None = None) -> Worker:
        place = {"RANK": str(rank), "WORLD_SIZE": str(world_size), **(environment or {})}
        worker = Worker(rank, self._process({**self.training.environment(node), **place}))
        self.workers.append(worker)
        return worker

    def _process(self, environment: Mapping[str, str]) -> subprocess.Popen[str] | ForkedProcess:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), **environment}
        if self._fork_server is not None and not self.prefix:
            return self._fork_server.start(self.script, [str(self.folder)], environment)
        return subprocess.Popen(
            [*self.prefix, sys.executable, str(self.script), str(self.folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def leader(self, *team: Worker) -> tuple[Worker, list[Worker]]:
        """The rank that leads, according to all of them, and the others."""

        def led() -> list[Worker]:
            leading = [worker for worker in team if worker.ask("hear")["leads"]]
            return leading if len(leading) == 1 else []

        leader: Worker = wait_for(led, "a leader")[0]
        return leader, [worker for worker in team if worker is not leader]

    def versions(self) -> dict[str, int]:
        """How often each committed checkpoint's record was written, by id."""
        prefix = f"{self.training.namespace}/gpt-a/checkpoints/"
        document = json.loads(self.training.server.etcdctl("get", "--prefix", "-w", "json", prefix))
        keys = {base64.b64decode(item["key"]).decode(): item["version"] for item in document.get("kvs", [])}
        return {key.removeprefix(prefix): version for key, version in keys.items() if not key.endswith("/latest")}

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
