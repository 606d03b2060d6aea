"""Starting one member and waiting until it serves."""

from __future__ import annotations

import ssl

from instep.errors import EtcdError
from instep.testing import _ports
from instep.testing._command import Member
from instep.testing._health import is_healthy, wait_until
from instep.testing._process import ServerProcess

START_TIMEOUT_S = 30.0


class PortTaken(EtcdError):
    """Another process listens on a port that the server was to have."""


def check_ports(member: Member) -> None:
    """Raise PortTaken when the member cannot listen on both of its ports now."""
    if member.prefix:
        return
    for port in (member.client_port, member.peer_port):
        if not _ports.is_free(member.host, port):
            raise PortTaken(f"port {port} on {member.host} is taken: end what listens there, or use port=0")


def wait_until_healthy(
    process: ServerProcess,
    member: Member,
    context: ssl.SSLContext | None,
    *,
    timeout_s: float = START_TIMEOUT_S,
) -> None:
    """Return when the member serves.

    When it ends instead, or does not serve in time, it is killed and EtcdError (PortTaken for that reason) is
    raised with the end of its log.
    """
    settled = wait_until(
        lambda: process.exit_status is not None or is_healthy(member.client_url, context), timeout_s=timeout_s
    )
    if settled and process.exit_status is None:
        return
    error = failure(process, timeout_s)
    process.kill()
    raise error


def failure(process: ServerProcess, waited_s: float) -> EtcdError:
    """Why a process does not serve after `waited_s`, with the end of its log."""
    status, tail = process.exit_status, process.log_tail()
    what = f"did not serve within {waited_s:g} s" if status is None else f"ended with status {status}"
    kind = PortTaken if "address already in use" in tail else EtcdError
    return kind(f"etcd {what}; the end of its log:\n{tail}")
