"""What an etcd member is started with: pure functions from settings to arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from instep.testing._binaries import EtcdBinary
from instep.testing._certificates import Certificates


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of an etcd cluster. `cluster` maps names to peer URLs; empty: it is alone."""

    name: str
    data_dir: Path
    host: str
    client_port: int
    peer_port: int = 0
    certificates: Certificates | None = None
    fsync: bool = True
    auth_token_ttl_s: int | None = None
    cheap_passwords: bool = False
    cluster: Mapping[str, str] = field(default_factory=dict)
    extra_args: Sequence[str] = ()

    @property
    def client_url(self) -> str:
        scheme = "https" if self.certificates else "http"
        return f"{scheme}://{_bracketed(self.host)}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://{_bracketed(self.host)}:{self.peer_port}"

    def at(self, client_port: int, peer_port: int) -> Member:
        """The same member on these ports."""
        return replace(self, client_port=client_port, peer_port=peer_port)


def command(binary: EtcdBinary, member: Member) -> list[str]:
    """The command line of one member, as its version understands it; `extra_args` come last and win."""
    cluster = member.cluster or {member.name: member.peer_url}
    return [
        str(binary.path),
        f"--name={member.name}",
        f"--data-dir={member.data_dir}",
        f"--listen-client-urls={member.client_url}",
        f"--advertise-client-urls={member.client_url}",
        f"--listen-peer-urls={member.peer_url}",
        f"--initial-advertise-peer-urls={member.peer_url}",
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
