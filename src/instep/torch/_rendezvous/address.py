"""Under which name or address the other nodes reach this one."""

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
    """The address from which the first of `endpoints`, URLs, that has an address is reached: what routes to etcd routes
    to the other nodes too, which a host name need not do (pods have names that no other pod resolves). For an etcd on
    this machine, the host's name if it resolves to something beyond loopback.

    Limit: behind address translation the others need another one: torchrun's --local-addr. Nothing is sent.
    """
    for url in map(urlsplit, endpoints):
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


def await_own_address(name: str, limit_s: float) -> None:
    """Returns once this machine reaches itself as `name`: a pod's own name may resolve only some seconds after it has
    started. Raises SettingsError after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    said = False
    while not reaches_this_machine(name):
        if time.monotonic() >= deadline:
            raise SettingsError(
                f"this node does not reach itself as {name!r}, so the others would not either: give an address of this "
                "machine with --local-addr"
            )
        if not said:
            log.warning("this node does not reach itself as %r: that is tried for %g s", name, limit_s)
        said = True
        time.sleep(PAUSE_S)


def reaches_this_machine(name: str) -> bool:
    """Whether a connection to `name` ends at this machine. Takes two seconds at most for each address it has, and what
    the resolver takes."""
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
    except (OSError, UnicodeError):  # the latter for what can be no name
        return False


def _listener() -> socket.socket:
    """On all interfaces, as the stores of torch are."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
