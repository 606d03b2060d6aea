"""A real etcd cluster for a test, with faults and restarts on demand."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, Self

from instep.errors import EtcdError, EtcdUnavailable, SettingsError
from instep.etcd_server.binaries import find_etcd
from instep.etcd_server.etcdctl import run_etcdctl
from instep.etcd_server.health import MemberStatus, wait_until
from instep.etcd_server.member import START_TIMEOUT_S, MemberSettings, PortTaken
from instep.etcd_server.ports import free_ports, is_whole
from instep.testing._access import Access, users
from instep.testing._certificates import Certificates
from instep.testing._member import EtcdMember
from instep.testing._namespaces import NamespaceNetwork
from instep.testing._network import Network, ProxiedNetwork
from instep.testing._partitions import Partitions
from instep.testing._resources import NAMESPACES, Resources
from instep.testing._service import EtcdService

_LOOPBACK = "127.0.0.1"
_PORT_TRIES = 5
_LEADER_TIMEOUT_S = 15.0
_POLL_S = 0.05


class EtcdCluster(Partitions, EtcdService):
    """A real etcd cluster on loopback, for a `with` block or between `start()` and `close()`.

    The members end with this process, however it ends. Do not use one cluster from several threads at once. Limit: the
    members use the machine's clock, so it cannot be changed for one of them.

    Args:
        members: The number of members.
        version: As for `EtcdServer`, like `tls`, `auth`, `auth_token_ttl_s`, `fsync` and `extra_args`; for each member.
        tls: For clients. Peers communicate without TLS.
        proxied: Puts proxies between the members and in front of the clients, for partitions. The harness itself
            bypasses them.
        network: "namespaces" gives each member a network namespace, for partitions that lose packets (root only). The
            harness is then a client like any other.
    """

    def __init__(
        self,
        members: int = 3,
        *,
        version: str | None = None,
        tls: bool = False,
        auth: str | Mapping[str, str] | None = None,
        auth_token_ttl_s: int | None = None,
        fsync: bool = False,
        proxied: bool = False,
        network: Literal["loopback", "namespaces"] = "loopback",
        extra_args: Sequence[str] = (),
    ) -> None:
        if not is_whole(members) or members < 1:
            raise SettingsError(f"a cluster has at least one member, not {members!r}")
        if network not in ("loopback", "namespaces"):
            raise SettingsError(f'the network of a cluster is "loopback" or "namespaces", not {network!r}')
        if proxied and network == "namespaces":
            raise SettingsError("a cluster has proxies or network namespaces, not both")
        self.binary = find_etcd(version)
        names = users(auth)
        self._names = [f"m{number}" for number in range(1, members + 1)]
        self._members: tuple[EtcdMember, ...] = ()
        self._started = False
        self._is_proxied = proxied
        self._network: Network | None = None
        self._resources = Resources()
        self._own(self._resources)
        self._spaces = self._namespaces() if network == "namespaces" else None
        hosts = list(self._spaces.addresses.values()) if self._spaces is not None else []
        folder = self._resources.folder
        self.access = Access(Certificates(folder / "certificates", hosts) if tls else None, names)
        self._common = MemberSettings(
            name="",
            data_dir=folder,
            host=_LOOPBACK,
            client_port=0,
            certificates=self.access.certificates,
            fsync=fsync,
            auth_token_ttl_s=auth_token_ttl_s,
            cheap_passwords=bool(names),
            extra_args=tuple(extra_args),
        )

    # -- facts -----------------------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """The version of every member, such as "3.5.16"."""
        return self.binary.version

    @property
    def members(self) -> tuple[EtcdMember, ...]:
        """The members; the same objects across kills and restarts."""
        if not self._started:
            raise EtcdError(f"{self._called} has not been started: call start() or use it in a with block")
        return self._members

    @property
    def endpoints(self) -> list[str]:
        """The client URLs of all members; the same across restarts."""
        return [member.endpoint for member in self.members]

    def leader(self, timeout_s: float = _LEADER_TIMEOUT_S, *, other_than: EtcdMember | None = None) -> EtcdMember:
        """The leader: the member that claims to lead, and that a majority names, in the same term.

        Polls until there is one other than `other_than`: a member that was just cut off still leads until its followers
        notice. Raises EtcdUnavailable if there is none within `timeout_s`. The leader may change right after this
        returns.
        """

        def another() -> EtcdMember | None:
            leader = self._leader_now()
            return None if leader is other_than else leader

        found = wait_until(another, timeout_s=timeout_s, poll_s=_POLL_S)
        if found is None:
            besides = f" but {other_than.name}" if other_than is not None else ""
            raise EtcdUnavailable(f"the etcd cluster had no leader{besides} for {timeout_s:g} s")
        return found

    def followers(self, timeout_s: float = _LEADER_TIMEOUT_S) -> tuple[EtcdMember, ...]:
        """All members except the leader, including stopped ones. Raises as `leader` does."""
        leader = self.leader(timeout_s)
        return tuple(member for member in self.members if member is not leader)

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts the members that are not running and waits until all serve, at most 30 s.

        Raises EtcdError with the end of a member's log if it exits instead.
        """
        if self._started:
            for member in self._members:
                member.launch()
            self.wait_healthy()
        else:
            self._first_start()
        return self

    def stop(self) -> None:
        """Stops all members with SIGTERM, paused or not, and with SIGKILL after 5 s. Keeps data and ports."""
        leader = self._leader_now()
        with ThreadPoolExecutor(len(self._names)) as pool:
            list(pool.map(EtcdMember.stop, [member for member in self._members if member is not leader]))
        # Last: otherwise it waits for a successor among members that stop too.
        if leader is not None:
            leader.stop()

    def kill(self) -> None:
        """Kills all running members at once (SIGKILL), like a crash of the machine."""
        running = [member for member in self._members if member.running]
        with ThreadPoolExecutor(len(self._names)) as pool:
            list(pool.map(EtcdMember.kill, running))

    def wait_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when every member serves and the cluster has a leader.

        Raises EtcdError, with the end of its log, for the first member that does not serve in time or is not running.
        """
        deadline = time.monotonic() + timeout_s
        for member in self._members:
            member.wait_healthy(max(0.0, deadline - time.monotonic()))
        if not wait_until(lambda: self._leader_now() is not None, timeout_s=max(0.1, deadline - time.monotonic())):
            raise EtcdUnavailable(f"the etcd cluster had no leader within {timeout_s:g} s")

    # -- maintenance -----------------------------------------------------------------------------

    def compact(self, revision: int | None = None) -> int:
        """Compacts the history before `revision`, by default before the newest. Returns the revision."""
        if revision is None:
            revision = max((answer.revision for answer in self._answers().values()), default=0)
        if not revision:
            raise EtcdUnavailable("no member of the etcd cluster reported its revision")
        self.etcdctl("compact", str(revision))
        return revision

    def defragment(self, member: EtcdMember) -> None:
        """Defragments one member's database, at most 30 s. The member does not answer meanwhile."""
        run_etcdctl(self.binary, self.access.flags([member.direct_endpoint]), ["defrag"])

    def __repr__(self) -> str:
        running = sum(member.running for member in self._members)
        state = f"{running} of {len(self._names)} members running" if self._started else "not started"
        return f"<EtcdCluster {self.version} {state}{self._extras}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _first_start(self) -> None:
        for left in reversed(range(_PORT_TRIES)):
            self._members = self._made()
            try:
                for member in self._members:
                    # One after the other: a new member asks the others for their ids, and waits a second for one that
                    # listens but does not serve yet.
                    member.launch()
                    member.wait_for_peers()
                self.wait_healthy()
            except PortTaken:
                self._forget()
                if not left:
                    raise
            else:
                break
        self._started = True
        if self.access.users:
            self.access.enable_auth(self.binary, self._etcdctl_endpoints)

    @property
    def _called(self) -> str:
        return "this etcd cluster"

    def _made(self) -> tuple[EtcdMember, ...]:
        folder, ports = self._resources.folder, iter(free_ports(2 * len(self._names), _LOOPBACK))
        settings = [
            replace(self._common, name=name, data_dir=folder / name, client_port=next(ports), peer_port=next(ports))
            for name in self._names
        ]
        if self._spaces is not None:
            addresses, prefix = self._spaces.addresses, self._spaces.prefix
            settings = [replace(m, host=addresses[m.name], prefix=tuple(prefix(m.name))) for m in settings]
        elif self._is_proxied:
            network = self._proxies(settings)
            settings = [member.behind(*network.ports(member.name)) for member in settings]
        cluster = {member.name: member.advertised_peer_url for member in settings}
        return tuple(
            EtcdMember(
                self.binary, member.joined(cluster), self.access, self._resources, log=folder / f"{member.name}.log"
            )
            for member in settings
        )

    def _proxies(self, settings: Sequence[MemberSettings]) -> ProxiedNetwork:
        self._network = network = ProxiedNetwork(settings, self._resources.pids)
        self._resources.before_release.append(network.close)
        return network

    def _namespaces(self) -> NamespaceNetwork:
        folder = self._resources.folder
        (folder / NAMESPACES).touch()
        self._network = network = NamespaceNetwork(folder.name, self._names)
        self._resources.before_release.append(network.close)
        return network

    def _forget(self) -> None:
        """Removes the members of a failed start before the next attempt."""
        self.kill()
        for member in self._members:
            shutil.rmtree(member.data_dir, ignore_errors=True)
        if self._is_proxied and self._network is not None:
            self._network.close()

    @property
    def _etcdctl_endpoints(self) -> list[str]:
        # etcdctl waits for members that do not answer, so it gets only healthy ones.
        members = self.members
        with ThreadPoolExecutor(len(members)) as pool:
            healthy = pool.map(lambda member: member.healthy, members)
            found = [member.direct_endpoint for member, well in zip(members, healthy, strict=True) if well]
        return found or [member.direct_endpoint for member in members]

    def _answers(self) -> dict[EtcdMember, MemberStatus]:
        """The status of the members that answer within 1 s."""
        asked = [member for member in self._members if member.running and not member.paused]
        if not asked:
            return {}
        with ThreadPoolExecutor(len(asked)) as pool:
            return {member: answer for member, answer in zip(asked, pool.map(_status, asked), strict=True) if answer}

    def _leader_now(self) -> EtcdMember | None:
        answers = self._answers()
        for member, own in answers.items():
            if own.leader != own.member:
                continue
            followed = sum(answer.leader == own.member and answer.term == own.term for answer in answers.values())
            if followed > len(self._names) // 2:
                return member
        return None


def _status(member: EtcdMember) -> MemberStatus | None:
    try:
        return member.status()
    except EtcdError:
        return None
