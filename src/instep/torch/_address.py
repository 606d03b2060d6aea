"""Under which name or address the other nodes reach this one."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"


def address_of_this_node(endpoint: str) -> str:
    """The address from which `endpoint`, a URL, is reached: what routes to etcd routes to the other nodes too, which a
    host name need not do (pods have names that no other pod resolves). For an etcd on this machine, the host's name
    if it resolves to something beyond loopback.

    Limit: behind address translation the others need another one: torchrun's --local-addr. Nothing is sent.
    """
    url = urlsplit(endpoint)
    found = _towards(url.hostname or LOOPBACK, url.port or 1)
    if found is not None and not ipaddress.ip_address(found.partition("%")[0]).is_loopback:
        return found
    return LOOPBACK if _is_loopback(socket.gethostname()) else socket.gethostname()


def _towards(host: str, port: int) -> str | None:
    """Our end of a connection to there; None when the host has no address or no route leads to it."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # a datagram socket only chooses its route
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_loopback(name: str) -> bool:
    """Also where the name has no address at all."""
    try:
        found = {str(item[4][0]) for item in socket.getaddrinfo(name, None)}
    except OSError:
        return True
    return all(ipaddress.ip_address(text.partition("%")[0]).is_loopback for text in found)
