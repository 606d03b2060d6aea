"""One etcd member: its command line (pure), and starting it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from instep.errors import EtcdError
from instep.etcd_server import ports
from instep.etcd_server.binaries import EtcdBinary
from instep.etcd_server.health import is_healthy, wait_until
from instep.etcd_server.process import ServerProcess

# Certificates name the loopback addresses, and a connection to "all addresses" has no portable meaning.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
START_TIMEOUT_S = 30.0


class ServerCertificates(Protocol):
    """Paths of PEM files: `server` holds the server's certificate and key, `ca` the authority of its clients."""

    server: str
    ca: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSettings:
    """Settings of one member of an etcd cluster. `cluster` maps names to peer URLs; empty for a cluster of one.

    It listens on `host` at its own ports. It can advertise other ports, those of proxies in front of it (0: none).
    `prefix` goes before the command, such as the command that enters another network namespace; its ports cannot be
    checked from here then.
    """

    name: str
    data_dir: Path
    host: str
    client_port: int
    peer_port: int = 0
    advertised_client_port: int = 0
    advertised_peer_port: int = 0
    certificates: ServerCertificates | None = None
    fsync: bool = True
    auth_token_ttl_s: int | None = None
    cheap_passwords: bool = False
    cluster: Mapping[str, str] = field(default_factory=dict)
    extra_args: Sequence[str] = ()
    prefix: Sequence[str] = ()

    @property
    def reachable_host(self) -> str:
        """The address at which this machine reaches it, also when it listens on all addresses."""
        return _LOOPBACK.get(self.host, self.host)

    @property
    def client_url(self) -> str:
        """The URL at which this machine reaches the member directly, whatever it advertises."""
        return f"{self._scheme}://{_bracketed(self.reachable_host)}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """The URL at which this machine reaches its peer port directly, past any proxy."""
        return f"http://{_bracketed(self.reachable_host)}:{self.peer_port}"

    @property
    def advertised_client_url(self) -> str:
        port = self.advertised_client_port or self.client_port
        return f"{self._scheme}://{_bracketed(self.reachable_host)}:{port}"

    @property
    def advertised_peer_url(self) -> str:
        return f"http://{_bracketed(self.reachable_host)}:{self.advertised_peer_port or self.peer_port}"

    @property
    def listen_urls(self) -> tuple[str, str]:
        """The URLs it listens on, for clients and for peers."""
        host = _bracketed(self.host)
        return f"{self._scheme}://{host}:{self.client_port}", f"http://{host}:{self.peer_port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.certificates else "http"

    def at(self, client_port: int, peer_port: int) -> MemberSettings:
        """A copy with these ports."""
        return replace(self, client_port=client_port, peer_port=peer_port)

    def behind(self, client_port: int, peer_port: int) -> MemberSettings:
        """A copy that advertises proxies at these ports."""
        return replace(self, advertised_client_port=client_port, advertised_peer_port=peer_port)

    def joined(self, cluster: Mapping[str, str]) -> MemberSettings:
        """A copy that is part of `cluster`."""
        return replace(self, cluster=dict(cluster))


def command(binary: EtcdBinary, member: MemberSettings) -> list[str]:
    """The command line of one member for its etcd version. `extra_args` come last and win."""
    cluster = member.cluster or {member.name: member.advertised_peer_url}
    client_url, peer_url = member.listen_urls
    return [
        *member.prefix,
        str(binary.path),
        f"--name={member.name}",
        f"--data-dir={member.data_dir}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={member.advertised_client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={member.advertised_peer_url}",
        "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in cluster.items()),
        # etcd 3.4 defaults to another format, and to the journal where one exists.
        "--logger=zap",
        "--log-outputs=stderr",
        *_tls(member.certificates),
        *_options(binary, member),
        *member.extra_args,
    ]


def _tls(certificates: ServerCertificates | None) -> list[str]:
    if certificates is None:
        return []
    server = certificates.server
    return [
        f"--cert-file={server}",
        f"--key-file={server}",
        f"--trusted-ca-file={certificates.ca}",
        "--client-cert-auth",
    ]


def _options(binary: EtcdBinary, member: MemberSettings) -> list[str]:
    words = []
    if member.auth_token_ttl_s is not None:
        words.append(f"--auth-token-ttl={member.auth_token_ttl_s}")
    if member.cheap_passwords:
        words.append("--bcrypt-cost=4")
    if not member.fsync and binary.release >= (3, 5):
        words.append("--unsafe-no-fsync")
    return words


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class PortTaken(EtcdError):
    """Another process listens on one of the server's ports."""


def check_ports(member: MemberSettings) -> None:
    """Raises PortTaken when the member cannot listen on both of its ports now."""
    if member.prefix:
        return
    for port in (member.client_port, member.peer_port):
        if not ports.is_free(member.host, port):
            raise PortTaken(f"port {port} on {member.host} is taken: end what listens there, or use port=0")


def wait_until_healthy(
    process: ServerProcess,
    member: MemberSettings,
    context: ssl.SSLContext | None,
    *,
    timeout_s: float = START_TIMEOUT_S,
) -> None:
    """Returns when the member serves.

    If it exits instead, or does not serve within `timeout_s`, kills it and raises EtcdError with the end of its log
    (PortTaken if that is the reason).
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
    """The error for a process that does not serve after `waited_s`, with the end of its log."""
    status, tail = process.exit_status, process.log_tail()
    what = f"did not serve within {waited_s:g} s" if status is None else f"ended with status {status}"
    kind = PortTaken if "address already in use" in tail else EtcdError
    return kind(f"etcd {what}; the end of its log:\n{tail}")
