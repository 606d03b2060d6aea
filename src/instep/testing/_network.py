"""The network of a cluster: a proxy in front of each member's client port and peer port."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from instep.etcd_server.member import MemberSettings
from instep.testing._line import Line
from instep.testing._link import Link
from instep.testing._listener import Listener
from instep.testing._owners import owner
from instep.testing._proxy import Proxy
from instep.testing._proxy_thread import ProxyThread


class Network(Protocol):
    """Faults between members, by name, and between a member and its clients."""

    def partition(self, groups: Sequence[Sequence[str]]) -> None: ...

    def block(self, sender: str, receiver: str) -> None: ...

    def hold_clients(self, name: str) -> None: ...

    def heal(self) -> None: ...

    def proxy(self, name: str) -> Proxy: ...

    def between(self, one: str, other: str) -> tuple[Link, Link]: ...

    def close(self) -> None: ...


Pids = Callable[[], Mapping[str, int]]
"""The pids of the running members, by name."""


class ProxiedNetwork:
    """Proxies between members and in front of clients, all in one thread.

    All members connect to the same peer URL of a member, so its proxy finds the source by the process that owns the
    other end of the connection. A connection of an unknown process is reset.
    """

    def __init__(self, members: Sequence[MemberSettings], pids: Pids) -> None:
        self._pids = pids
        self._thread = ProxyThread("instep-network")
        self._names = [member.name for member in members]
        self.clients: dict[str, Proxy] = {}
        self.peers: dict[str, Listener] = {}
        self.links: dict[tuple[str, str], Link] = {}
        self._lines: dict[tuple[str, str], Line] = {}
        try:
            for member in members:
                self._open(member)
        except BaseException:
            self.close()
            raise

    def ports(self, name: str) -> tuple[int, int]:
        """The ports of a member's proxies: clients, peers."""
        return self.clients[name].port, self.peers[name].port

    def block(self, sender: str, receiver: str) -> None:
        """Holds back what one member sends to another, on the connections of both."""
        self.links[sender, receiver].black_hole("up")
        self.links[receiver, sender].black_hole("down")

    def between(self, one: str, other: str) -> tuple[Link, Link]:
        """The connections that `one` opens, and those that `other` opens."""
        return self.links[one, other], self.links[other, one]

    def partition(self, groups: Sequence[Sequence[str]]) -> None:
        """Holds back everything between members of different groups."""
        for left, right in itertools.combinations(groups, 2):
            for one, other in itertools.product(left, right):
                for link in self.between(one, other):
                    link.black_hole()

    def hold_clients(self, name: str) -> None:
        """Holds back everything between a member and its clients."""
        self.clients[name].black_hole()

    def proxy(self, name: str) -> Proxy:
        """The proxy in front of a member's client port."""
        return self.clients[name]

    def heal(self) -> None:
        """Ends all faults of all links."""
        for link in self._all():
            link.heal()

    def close(self) -> None:
        """Resets all connections and stops permanently."""
        for listener in self.peers.values():
            listener.close()
        for proxy in self.clients.values():
            proxy.close()
        for link in self.links.values():
            link.cut()
        self._thread.close()

    # -- inside ----------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[Link]:
        yield from self.links.values()
        yield from self.clients.values()

    def _open(self, member: MemberSettings) -> None:
        name, host = member.name, member.host
        self.clients[name] = Proxy(host, member.client_port, thread=self._thread)
        for dialler in self._names:
            if dialler != name:
                line = Line(f"{dialler} to {name}", (host, member.peer_port))
                self._lines[dialler, name] = line
                self.links[dialler, name] = Link(self._thread, line)
        self.peers[name] = Listener(self._thread, host, 0, lambda port: self._line_of(port, name))

    def _line_of(self, source_port: int, name: str) -> Line | None:
        listener = self.peers.get(name)
        if listener is None:
            return None
        dialler = owner(source_port, listener.port, self._pids())
        return None if dialler is None else self._lines.get((dialler, name))
