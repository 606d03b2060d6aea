"""The name or address at which the other nodes reach this one."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
import time
from typing import Final
from urllib.parse import urlsplit

from instep.errors import SettingsError

log = logging.getLogger("instep")

LOOPBACK = "127.0.0.1"
ATTEMPT_S: Final = 2.0
PAUSE_S: Final = 0.5


def address_of_this_node(*endpoints: str) -> str:
    """The local address from which this node reaches the first resolvable URL in `endpoints`. Sends nothing.

    The interface that leads to etcd usually leads to the other nodes too, which a host name need not do: no other pod
    can resolve a pod's name. For an etcd on this machine, returns the host name if it resolves to more than loopback.

    Limit: behind address translation, the other nodes need another address: torchrun's --local-addr.
    """
    for url in map(urlsplit, endpoints):
        found = _towards(url.hostname or LOOPBACK, url.port or 1)
        if found is not None and not ipaddress.ip_address(found.partition("%")[0]).is_loopback:
            return found
    return LOOPBACK if _is_loopback(socket.gethostname()) else socket.gethostname()


def _towards(host: str, port: int) -> str | None:
    """The local address of a connection to `host`; None if it does not resolve or has no route."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # a datagram socket only chooses its route
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_loopback(name: str) -> bool:
    """Whether the name resolves only to loopback, or not at all."""
    try:
        found = {str(item[4][0]) for item in socket.getaddrinfo(name, None)}
    except OSError:
        return True
    return all(ipaddress.ip_address(text.partition("%")[0]).is_loopback for text in found)


def await_own_address(name: str, limit_s: float) -> None:
    """Waits until this machine reaches itself as `name`: a pod's own name may resolve only seconds after its start.
    Raises SettingsError after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    warned = False
    while not reaches_this_machine(name):
        if time.monotonic() >= deadline:
            raise SettingsError(
                f"this node cannot reach itself as {name!r}, so the others cannot either: set --local-addr to an "
                "address of this machine"
            )
        if not warned:
            log.warning("this node cannot reach itself as %r: retrying for %g s", name, limit_s)
        warned = True
        time.sleep(PAUSE_S)


def reaches_this_machine(name: str) -> bool:
    """Whether a connection to `name` ends at this machine. Takes at most two seconds per address, plus the time of the
    resolver."""
    token = secrets.token_bytes(16)
    try:
        with _listener() as listener:
            listener.settimeout(ATTEMPT_S)
            with socket.create_connection((name, listener.getsockname()[1]), ATTEMPT_S) as probe:
                probe.sendall(token)
                came, _ = listener.accept()
                with came:
                    came.settimeout(ATTEMPT_S)
                    return came.recv(len(token), socket.MSG_WAITALL) == token
    except (OSError, UnicodeError):  # UnicodeError: not a valid host name
        return False


def _listener() -> socket.socket:
    """A listener on all interfaces, like torch's stores."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
