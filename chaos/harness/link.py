"""A link to each member of a cluster that can be cut, silenced and moved."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from chaos.harness import hosts_file
from instep.testing import Proxy

LISTING = b"/reports/members0"
"""The end of the range of registrations, which a leader must have listed before it decides anything."""
FIRST_ADDRESS, LAST_ADDRESS = 2, 250


class Link:
    """A link to each member of the cluster that can be cut; with a `name` it can be moved too."""

    def __init__(self, endpoints: Sequence[str], name: str = "") -> None:
        self._targets = [_place(endpoint) for endpoint in endpoints]
        self._names = [f"etcd-{number}.{name}.test" for number in range(len(endpoints))] if name else []
        self._address = FIRST_ADDRESS
        self._proxies = [Proxy(*target) for target in self._targets]
        if name:
            hosts_file.publish(dict.fromkeys(self._names, "127.0.0.1"))

    def __repr__(self) -> str:
        return f"Link({', '.join(self.endpoints)})"

    @property
    def endpoints(self) -> list[str]:
        """The endpoints; a move does not change them."""
        hosts = self._names or ["127.0.0.1"] * len(self._proxies)
        return [f"http://{host}:{proxy.port}" for host, proxy in zip(hosts, self._proxies, strict=True)]

    @property
    def can_move(self) -> bool:
        return bool(self._names)

    def leave_address(self) -> None:
        """Resets connections and refuses new ones."""
        for proxy in self._proxies:
            proxy.close()

    def arrive_elsewhere(self) -> None:
        """Listens on the same ports at another address of this machine; the names resolve to it from now on."""
        address = f"127.0.0.{self._address}"
        self._address = self._address + 1 if self._address < LAST_ADDRESS else FIRST_ADDRESS
        ports = [proxy.port for proxy in self._proxies]
        self._proxies = [
            Proxy(*target, host=address, port=port) for target, port in zip(self._targets, ports, strict=True)
        ]
        hosts_file.publish(dict.fromkeys(self._names, address))

    def lose_listings(self) -> None:
        """Loses the reply to the next listing of a leader. Call it repeatedly while the fault lasts."""
        for proxy in self._proxies:
            proxy.lose_next_reply(LISTING)

    def cut_off(self) -> None:
        """Loses packets in both directions; resets nothing."""
        for proxy in self._proxies:
            proxy.black_hole("both")

    def silence(self) -> None:
        """Loses replies; requests still arrive."""
        for proxy in self._proxies:
            proxy.black_hole("down")

    def heal(self) -> None:
        for proxy in self._proxies:
            proxy.heal()

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()


def _place(endpoint: str) -> tuple[str, int]:
    place = urlsplit(endpoint)
    assert place.hostname is not None
    assert place.port is not None
    return place.hostname, place.port
