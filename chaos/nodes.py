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

from chaos import names
from chaos.faults import TTL_S
from chaos.processes import agents_below, send
from instep.testing import Proxy

TAIL_BYTES = 6000
CONNECT_TIMEOUT_S = 1.0


LISTING = b"/reports/members0"
"""The end of the range of registrations, which a leader must have listed before it decides anything."""
FIRST_ADDRESS, LAST_ADDRESS = 2, 250


class Link:
    """A way to each member of the cluster that can be cut; with a `name` it can be moved too."""

    def __init__(self, endpoints: Sequence[str], name: str = "") -> None:
        self._targets = [_place(endpoint) for endpoint in endpoints]
        self._names = [f"etcd-{number}.{name}.test" for number in range(len(endpoints))] if name else []
        self._address = FIRST_ADDRESS
        self._proxies = [Proxy(*target) for target in self._targets]
        if name:
            names.publish(dict.fromkeys(self._names, "127.0.0.1"))

    def __repr__(self) -> str:
        return f"Link({', '.join(self.endpoints)})"

    @property
    def endpoints(self) -> list[str]:
        """The same over moves."""
        hosts = self._names or ["127.0.0.1"] * len(self._proxies)
        return [f"http://{host}:{proxy.port}" for host, proxy in zip(hosts, self._proxies, strict=True)]

    @property
    def can_move(self) -> bool:
        return bool(self._names)

    def leave_address(self) -> None:
        """Nobody is there any more: connections are reset, new ones refused."""
        for proxy in self._proxies:
            proxy.close()

    def arrive_elsewhere(self) -> None:
        """The same ports at another address of this machine, to which the names lead from now on."""
        address = f"127.0.0.{self._address}"
        self._address = self._address + 1 if self._address < LAST_ADDRESS else FIRST_ADDRESS
        ports = [proxy.port for proxy in self._proxies]
        self._proxies = [
            Proxy(*target, host=address, port=port) for target, port in zip(self._targets, ports, strict=True)
        ]
        names.publish(dict.fromkeys(self._names, address))

    def lose_listings(self) -> None:
        """The next listing of a leader is not answered: to be said again and again, for as long as it is to last."""
        for proxy in self._proxies:
            proxy.lose_next_reply(LISTING)

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
        self.link = Link(endpoints, name if names.can_move() else "")

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

    def kill_agent_and_supervisor(self) -> bool:
        """At once, so that neither starts another; False where there was no agent."""
        pids = agents_below(self.folder)
        send(pids, signal.SIGKILL)
        return bool(pids)

    def log_tail(self) -> str:
        logs = [path.read_bytes()[-TAIL_BYTES:].decode(errors="replace") for path in self.folder.glob("*/agent.log")]
        return "\n".join(logs)

    def close(self) -> None:
        """Ends the link, and any agent that is left, a frozen one too; to be called when the ranks are gone."""
        send(agents_below(self.folder), signal.SIGKILL)
        self.link.close()


def _place(endpoint: str) -> tuple[str, int]:
    place = urlsplit(endpoint)
    assert place.hostname is not None
    assert place.port is not None
    return place.hostname, place.port
