"""The nodes: each a runtime folder with an agent of its own, and a link to the cluster that can be cut."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from chaos.faults import TTL_S
from instep.testing import Proxy

TAIL_BYTES = 6000
CONNECT_TIMEOUT_S = 1.0


class Link:
    """A way to each member of the cluster that can be cut."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._proxies = [_proxy_to(endpoint) for endpoint in endpoints]

    def __repr__(self) -> str:
        return f"Link({', '.join(self.endpoints)})"

    @property
    def endpoints(self) -> list[str]:
        return [f"http://{proxy.endpoint}" for proxy in self._proxies]

    def cut_off(self) -> None:
        """Packets of both directions are lost, nothing is reset."""
        for proxy in self._proxies:
            proxy.black_hole("both")

    def silence(self) -> None:
        """Requests arrive, replies do not."""
        for proxy in self._proxies:
            proxy.black_hole("down")

    def heal(self) -> None:
        for proxy in self._proxies:
            proxy.heal()

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()


class Node:
    """One node. Its agent reaches each member of the cluster through a proxy of this node."""

    def __init__(self, name: str, folder: Path, endpoints: Sequence[str], namespace: str) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(mode=0o700)
        self._namespace = namespace
        self.link = Link(endpoints)

    def __repr__(self) -> str:
        return f"Node({self.name}, agent {self.agent_pid()})"

    @property
    def endpoints(self) -> list[str]:
        """Where the members are reached from this node."""
        return self.link.endpoints

    def environment(self) -> dict[str, str]:
        """The settings of this node's ranks and so of its agent."""
        return {
            "INSTEP_ETCD": ",".join(self.endpoints),
            "INSTEP_NAMESPACE": self._namespace,
            "INSTEP_RUNTIME_DIR": str(self.folder),
            "INSTEP_TTL_S": str(TTL_S),
        }

    def agent_pid(self) -> int | None:
        """Who listens on the agent's socket; None when nobody does."""
        for path in self.folder.glob("*/agent.sock"):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(CONNECT_TIMEOUT_S)
                probe.connect(str(path))
                return int(struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        return None

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

    def log_tail(self) -> str:
        logs = [path.read_bytes()[-TAIL_BYTES:].decode(errors="replace") for path in self.folder.glob("*/agent.log")]
        return "\n".join(logs)

    def close(self) -> None:
        """Ends the link, and any agent that is left, a frozen one too; to be called when the ranks are gone."""
        for pid in _agents_below(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.link.close()


def _proxy_to(endpoint: str) -> Proxy:
    place = urlsplit(endpoint)
    assert place.hostname is not None
    assert place.port is not None
    return Proxy(place.hostname, place.port)


def _agents_below(folder: Path) -> list[int]:
    """All agents whose runtime folder lies below `folder`, also those that nobody can connect to."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"instep.agent" in words and any(word.startswith(bytes(folder)) for word in words):
                    found.append(int(entry.name))
    return found
