"""What an etcd member is started with: pure functions from settings to arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from instep.testing._binaries import EtcdBinary
from instep.testing._certificates import Certificates

# Certificates name the loopback addresses, and a connection to "all addresses" has no portable meaning.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of an etcd cluster. `cluster` maps names to peer URLs; empty: it is alone.

    It listens on `host` at its own ports. Other ports may be advertised: those of proxies before it (0: none). `prefix`
    comes before the command: that of another network namespace, in which its ports cannot be looked at.
    """

    name: str
    data_dir: Path
    host: str
    client_port: int
    peer_port: int = 0
    advertised_client_port: int = 0
    advertised_peer_port: int = 0
    certificates: Certificates | None = None
    fsync: bool = True
    auth_token_ttl_s: int | None = None
    cheap_passwords: bool = False
    cluster: Mapping[str, str] = field(default_factory=dict)
    extra_args: Sequence[str] = ()
    prefix: Sequence[str] = ()

    @property
    def reachable_host(self) -> str:
        """Where this machine reaches it: an address, also when it listens on all of them."""
        return _LOOPBACK.get(self.host, self.host)

    @property
    def client_url(self) -> str:
        """Where this machine reaches the member itself, whatever is advertised."""
        return f"{self._scheme}://{_bracketed(self.reachable_host)}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Where this machine reaches it as its peers do, past any proxy."""
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
        """Where it listens, for clients and for peers."""
        host = _bracketed(self.host)
        return f"{self._scheme}://{host}:{self.client_port}", f"http://{host}:{self.peer_port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.certificates else "http"

    def at(self, client_port: int, peer_port: int) -> Member:
        """The same member on these ports."""
        return replace(self, client_port=client_port, peer_port=peer_port)

    def within(self, prefix: Sequence[str]) -> Member:
        """The same member started by a command before its own."""
        return replace(self, prefix=tuple(prefix))

    def behind(self, client_port: int, peer_port: int) -> Member:
        """The same member behind proxies at these ports."""
        return replace(self, advertised_client_port=client_port, advertised_peer_port=peer_port)

    def joined(self, cluster: Mapping[str, str]) -> Member:
        """The same member as one of `cluster`."""
        return replace(self, cluster=dict(cluster))


def command(binary: EtcdBinary, member: Member) -> list[str]:
    """The command line of one member, as its version understands it; `extra_args` come last and win."""
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
        # 3.4 would write another format, and to the journal where there is one.
        "--logger=zap",
        "--log-outputs=stderr",
        *_tls(member.certificates),
        *_options(binary, member),
        *member.extra_args,
    ]


def _tls(certificates: Certificates | None) -> list[str]:
    if certificates is None:
        return []
    server = certificates.server
    return [
        f"--cert-file={server}",
        f"--key-file={server}",
        f"--trusted-ca-file={certificates.ca}",
        "--client-cert-auth",
    ]


def _options(binary: EtcdBinary, member: Member) -> list[str]:
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
