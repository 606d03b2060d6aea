"""Free ports that stay free while a server is down."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

from instep.errors import EtcdError, SettingsError

_LOWEST = 10_000
_HIGHEST = 65_535
_TRIES = 200
_chance = random.SystemRandom()


def free_ports(count: int, host: str) -> list[int]:
    """`count` different ports on which `host` can listen now. Limit: another process may take one first.

    The ports are below the kernel's range for outgoing connections where there is room. Otherwise a client that
    reconnects to a stopped server could get the server's own port, and the server could not restart.
    """
    ports: set[int] = set()
    highest = _first_outgoing_port() - 1
    for _ in range(_TRIES):
        if len(ports) == count:
            return sorted(ports)
        port = _chance.randint(_LOWEST, highest) if highest - _LOWEST >= 1000 else 0
        taken = _bind(host, port)
        if taken:
            ports.add(taken)
    raise EtcdError(f"no {count} free ports on {host} after {_TRIES} tries")


def check_port(port: int, lowest: int = 0) -> int:
    """Returns `port` if it is a valid port number; raises SettingsError otherwise."""
    if not is_whole(port) or not lowest <= port <= _HIGHEST:
        raise SettingsError(f"a port is a whole number from {lowest} to {_HIGHEST}, not {port!r}")
    return port


def is_whole(number: object) -> bool:
    """Whether it is an int and not a bool."""
    return isinstance(number, int) and not isinstance(number, bool)


def is_free(host: str, port: int) -> bool:
    """Whether `host` can listen on `port` now."""
    return _bind(host, port) != 0


def _bind(host: str, port: int) -> int:
    """Listens on `port` (0: any) for a moment. Returns the free port, or 0 if it was taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return 0
            raise
        return int(probe.getsockname()[1])


def _first_outgoing_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
