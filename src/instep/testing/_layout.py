"""The settings of the members of a cluster, before their addresses are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from instep.etcd_server.member import MemberSettings
from instep.etcd_server.ports import free_ports
from instep.testing._certificates import Certificates

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The common settings of all members, and their names in order."""

    names: Sequence[str]
    folder: Path
    certificates: Certificates | None
    fsync: bool
    auth_token_ttl_s: int | None
    cheap_passwords: bool
    extra_args: Sequence[str]

    def members(self, hosts: Mapping[str, str]) -> list[MemberSettings]:
        """The members on free ports, each on its host, by default loopback."""
        ports = iter(free_ports(2 * len(self.names), LOOPBACK))
        return [
            MemberSettings(
                name=name,
                data_dir=self.folder / name,
                host=hosts.get(name, LOOPBACK),
                client_port=next(ports),
                peer_port=next(ports),
                certificates=self.certificates,
                fsync=self.fsync,
                auth_token_ttl_s=self.auth_token_ttl_s,
                cheap_passwords=self.cheap_passwords,
                extra_args=self.extra_args,
            )
            for name in self.names
        ]


def joined(members: Sequence[MemberSettings]) -> list[MemberSettings]:
    """Copies of the members that form one cluster."""
    cluster = {member.name: member.advertised_peer_url for member in members}
    return [member.joined(cluster) for member in members]
