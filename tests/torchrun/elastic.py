"""Runs of real torchrun agents on a real etcd, nodes that die and come back, and what their workers did."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.harness.fork_server import ForkedProcess, ForkServer
from chaos.harness.processes import descendants, marked, send
from chaos.harness.records import Record, RecordReader

from etcd_gateway import read_keys
from instep.testing import EtcdCluster, EtcdServer
from run.harness import wait_for

FOLDER = Path(__file__).parent
SOURCE = FOLDER.parents[1] / "src"
WORKER = FOLDER / "elastic_worker.py"
PATIENCE_S = 60.0
RUN = "elastic"
AGENT = "torch.distributed.run:main"
MARK = "INSTEP_TAG"
TTL_S = 3
QUICK = {"keep_alive_interval": "1", "keep_alive_max_attempt": "3", "last_call_timeout": "1", "join_timeout": "120"}


class Agent:
    """One agent: a node with its workers, all of which die when the node does."""

    def __init__(self, name: str, folder: Path, process: ForkedProcess) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._records = RecordReader(folder / f"{name}.said")
        self._log = folder / f"{name}.log"

    def __repr__(self) -> str:
        return f"Agent({self.name}, pid {self.pid}, {'runs' if self.code is None else f'ended with {self.code}'})"

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def last(self) -> Record:
        """The last record of its workers; empty before the first one."""
        self._records.refresh()
        return self._records.records[-1] if self._records.records else {}

    @property
    def rounds(self) -> list[str]:
        """The worlds in which its workers have been started, in order."""
        return [event["world"] for event in self._records.select("start")]

    def tell(self, number: signal.Signals) -> None:
        """The agent alone."""
        os.kill(self.pid, number)

    def die(self) -> None:
        """As its node would: agent and workers at once, without a word."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)  # or it would start another worker between the look and the kill
            send([*descendants(self.pid), self.pid], signal.SIGKILL)
        wait_for(lambda: self.code is not None, f"{self.name} to be dead")

    def crash(self) -> None:
        """The agent is killed alone; its workers end with their peers' connections."""
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: self.code is not None, f"{self.name} to be dead")

    def wait_ended(self, timeout_s: float = PATIENCE_S) -> int:
        wait_for(lambda: self.code is not None, f"{self.name} to end\n{self.log[-4000:]}", timeout_s)
        assert self.code is not None
        return self.code


class ElasticRun:
    """Agents of one run id, each a node of its own."""

    def __init__(
        self, server: EtcdServer | EtcdCluster, folder: Path, fork_server: ForkServer, *, namespace: str
    ) -> None:
        self.server = server
        self.namespace = namespace
        self.folder = folder
        self.agents: list[Agent] = []
        self._fork_server = fork_server
        self._mark = uuid.uuid4().hex

    def start(
        self,
        nodes: str = "2",
        *,
        how: str = "line",
        max_restarts: int = 10,
        options: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        run: str = RUN,
        script: Sequence[str] | None = None,
        flags: Sequence[str] = (),
    ) -> Agent:
        """`nodes` is torchrun's --nnodes."""
        name = f"n{len(self.agents)}"
        config = {"namespace": self.namespace, **QUICK, **(options or {})}
        arguments = [
            "--rdzv-backend=etcd3",
            f"--rdzv-endpoint={','.join(self.server.endpoints)}",
            f"--rdzv-id={run}",
            f"--rdzv-conf={','.join(f'{key}={value}' for key, value in config.items())}",
            f"--nnodes={nodes}",
            "--nproc-per-node=1",
            f"--max-restarts={max_restarts}",
            f"--log-dir={self.folder / 'logs'}",
            *flags,
            *(script or (str(WORKER), str(self.folder), how)),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "OMP_NUM_THREADS": "1",
            "LOGLEVEL": "INFO",
            "TEST_NODE": name,
            MARK: self._mark,
            **(environ or {}),
        }
        log = self.folder / f"{name}.log"
        process = self._fork_server.start(AGENT, arguments, environment, log=log, new_session=True)
        agent = Agent(name, self.folder, process)
        self.agents.append(agent)
        return agent

    # -- what is seen -----------------------------------------------------------------------------------------------

    def wait_world(
        self, agents: Iterable[Agent], *, other_than: Iterable[str] = (), timeout_s: float = PATIENCE_S
    ) -> str:
        """Returns the world in which the workers of just these agents train."""
        chosen = list(agents)
        known = set(other_than)

        def formed() -> str | None:
            for agent in chosen:
                assert agent.code is None, f"{agent}\n{agent.log[-4000:]}"
            last = [agent.last for agent in chosen]
            worlds = {event.get("world") for event in last if event.get("event") == "trains"}
            if len(worlds) != 1 or worlds & known or any(event.get("event") != "trains" for event in last):
                return None
            if any(event["size"] != len(chosen) for event in last):
                return None
            assert sorted(event["rank"] for event in last) == list(range(len(chosen))), last
            return str(worlds.pop())

        try:
            return str(wait_for(formed, f"a world of {[agent.name for agent in chosen]}", timeout_s))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def finish(self, *agents: Agent, timeout_s: float = PATIENCE_S) -> None:
        """Lets the training end; all these end well."""
        (self.folder / "stop").touch()
        for agent in agents:
            assert agent.wait_ended(timeout_s) == 0, f"{agent}\n{agent.log[-4000:]}"
        (self.folder / "stop").unlink()

    def story(self) -> str:
        """For a failure: what each agent and its workers said last."""
        parts = [f"--- {agent}: {agent.last}\n{agent.log[-3000:]}" for agent in self.agents]
        return "\n".join([*parts, self.server.etcdctl("get", "--prefix", self.namespace, check=False)])

    def wait_registered(self, number: int, run: str = RUN) -> None:
        """So many nodes are there, spares too."""
        wait_for(lambda: len(self.registered(run)) == number, f"{number} nodes in etcd\n{self.story()}")

    def key(self, path: str, run: str = RUN) -> Any:
        key = f"{self.namespace}/{run}/rendezvous/{path}"
        text = read_keys(self.server, key).get(key)
        return json.loads(text) if text else None

    def registered(self, run: str = RUN) -> list[dict[str, Any]]:
        prefix = f"{self.namespace}/{run}/rendezvous/nodes/"
        return [json.loads(text) for text in read_keys(self.server, prefix, prefix=True).values()]

    def close(self) -> None:
        """All that still runs of it."""
        for agent in self.agents:
            if agent.code is None:
                agent.die()
        send(marked(f"{MARK}={self._mark}"), signal.SIGKILL)
