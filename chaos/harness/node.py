"""Nodes: each has a runtime folder, its own agent, and optionally a link to the cluster that can be cut."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import instep
from chaos.harness import hosts_file
from chaos.harness.link import Link
from chaos.harness.processes import agents_below, send, server_of

ROOT = Path(__file__).resolve().parents[2]
PYTHON_PATH = os.pathsep.join([str(Path(instep.__file__).resolve().parents[1]), str(ROOT)])
"""Where a process finds Instep and this package."""
TAIL_BYTES = 6000


class Node:
    """`settings` reach the ranks of the node, and its agent, in their environment."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, str], *, ttl_s: int) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(mode=0o700)
        self._settings = {**settings, "INSTEP_RUNTIME_DIR": str(self.folder), "INSTEP_TTL_S": str(ttl_s)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, agent {self.agent_pid()})"

    def environment(self) -> dict[str, str]:
        """The environment of this process with the node's settings; Instep and this package can be imported."""
        return {**os.environ, "PYTHONPATH": PYTHON_PATH, **self._settings}

    def agent_pid(self) -> int | None:
        """The process that listens on the agent's socket."""
        found = (server_of(path) for path in self.folder.glob("*/agent.sock"))
        return next((pid for pid in found if pid is not None), None)

    def agents(self) -> list[int]:
        """The pids of supervisors and agents, a supervisor before its agent; also without a socket."""
        return agents_below(self.folder)

    def signal_agent(self, number: signal.Signals, pid: int | None = None) -> int | None:
        """Sends a signal to the agent (or to `pid`, which was it); returns its pid, None when there is none."""
        pid = self.agent_pid() if pid is None else pid
        if pid is None:
            return None
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        return pid

    def kill_agent_and_supervisor(self) -> bool:
        """Kills both at the same time, before either can start another; False if there was no agent."""
        pids = self.agents()
        send(pids, signal.SIGKILL)
        return bool(pids)

    def log_tail(self) -> str:
        logs = [path.read_bytes()[-TAIL_BYTES:].decode(errors="replace") for path in self.folder.glob("*/agent.log")]
        return "\n".join(logs)

    def close(self) -> None:
        """Kills any remaining agent, also a frozen one. Call it after the ranks have ended."""
        send(self.agents(), signal.SIGKILL)


class LinkedNode(Node):
    """Its agent reaches each member of the cluster through a proxy of this node."""

    def __init__(self, name: str, folder: Path, endpoints: Sequence[str], namespace: str, *, ttl_s: int) -> None:
        super().__init__(name, folder, {"INSTEP_NAMESPACE": namespace}, ttl_s=ttl_s)
        self.link = Link(endpoints, name if hosts_file.can_move() else "")

    @property
    def endpoints(self) -> list[str]:
        """Where the members are reached from this node."""
        return self.link.endpoints

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "INSTEP_ETCD": ",".join(self.endpoints)}

    def close(self) -> None:
        super().close()
        self.link.close()
