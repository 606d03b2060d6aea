"""A real etcd server for a test, with faults and restarts on demand."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from instep.errors import EtcdError
from instep.etcd_server.binaries import find_etcd
from instep.etcd_server.etcdctl import restore_snapshot
from instep.etcd_server.member import MemberSettings, PortTaken, wait_until_healthy
from instep.etcd_server.ports import check_port, free_ports
from instep.testing._access import Access, users
from instep.testing._certificates import Certificates
from instep.testing._member import EtcdMember
from instep.testing._resources import Resources
from instep.testing._service import EtcdService

_PORT_TRIES = 5


class EtcdServer(EtcdMember, EtcdService):
    """A real etcd of one member on loopback, for a `with` block or between `start()` and `close()`.

    The server ends with this process, however it ends. Do not use one server from several threads at once.

    Args:
        port: The client port; 0 takes free ports.
        version: "3.5.16", "3.5", or None for the newest on this machine.
        tls: Requires client certificates; `certificates` has the files for a client.
        auth: "user:password", or a mapping of users to passwords, enables authentication. Each user has the root role.
        auth_token_ttl_s: The TTL of authentication tokens; None for etcd's default.
        data_dir: The data folder; by default a temporary folder that `close()` removes.
        name: The name of the member.
        host: The address to listen on.
        fsync: False lets data survive a killed server, but not a killed machine (etcd 3.5 and newer; 3.4 always syncs).
        extra_args: Added to the end of etcd's command line, where they win.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        version: str | None = None,
        tls: bool = False,
        auth: str | Mapping[str, str] | None = None,
        auth_token_ttl_s: int | None = None,
        data_dir: Path | str | None = None,
        name: str = "default",
        host: str = "127.0.0.1",
        fsync: bool = False,
        extra_args: Sequence[str] = (),
    ) -> None:
        check_port(port)
        binary, names = find_etcd(version), users(auth)
        resources = Resources()
        self._own(resources)
        access = Access(Certificates(resources.folder / "certificates") if tls else None, names)
        self._ports_are_ours = port == 0
        self._served = False
        self._snapshots = 0
        settings = MemberSettings(
            name=name,
            data_dir=Path(data_dir).absolute() if data_dir is not None else resources.folder / "data",
            host=host,
            client_port=port,
            certificates=access.certificates,
            fsync=fsync,
            auth_token_ttl_s=auth_token_ttl_s,
            cheap_passwords=bool(names),
            extra_args=tuple(extra_args),
        )
        super().__init__(binary, settings, access, resources, log=resources.folder / "etcd.log")

    # -- facts -----------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """The client URL: http://127.0.0.1:port, https with TLS. The same across restarts."""
        self._must_have_served()
        return super().endpoint

    @property
    def endpoints(self) -> list[str]:
        """A list of the one client URL."""
        return [self.endpoint]

    @property
    def port(self) -> int:
        """The client port."""
        self._must_have_served()
        return self._settings.client_port

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts it and waits until it serves, at most 30 s; on the same data and ports if it ran before.

        Raises EtcdError with the end of its log if it exits instead, and at once if its port is taken.
        """
        if self.running:
            return self
        if self._served:
            self._serve()
        else:
            self._first_start()
        return self

    # -- backup and restore --------------------------------------------------------------------------------

    def snapshot(self) -> Path:
        """Saves its contents, as `etcdctl snapshot save` does, to a file that `close()` removes."""
        self._must_have_served()
        self._snapshots += 1
        path = self._resources.folder / f"snapshot-{self._snapshots}.db"
        self.etcdctl("snapshot", "save", str(path))
        return path

    def restore(self, snapshot: Path, *, another_cluster: bool = False) -> None:
        """Serves the contents of `snapshot`, without anything written after it, at the same address.

        It keeps the cluster id, as an operator would who restores with the same settings, unless `another_cluster`.
        Leases exist as in the snapshot, each with its full TTL.
        """
        self._empty()
        token = f"restored-{self._snapshots}-{snapshot.stem}" if another_cluster else "etcd-cluster"
        restore_snapshot(self.binary, snapshot, self._settings, token=token)
        self._serve()

    def wipe(self) -> None:
        """Serves an empty store at the same address, as after the loss of a volume."""
        self._empty()
        self._serve()
        if self.access.users:
            self.access.enable_auth(self.binary, self.endpoints)

    def close(self) -> None:
        """Stops it permanently and removes its temporary folder with the log. A given `data_dir` stays."""
        if not self.data_dir.is_relative_to(self._resources.folder):
            self.stop()
        super().close()

    def __repr__(self) -> str:
        place = super().endpoint if self._served else "not started"
        state = f"pid {self.pid}" if self.running else "not running"
        return f"<EtcdServer {self.version} {place} {state}{self._extras}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _first_start(self) -> None:
        for left in reversed(range(_PORT_TRIES)):
            self._take_ports()
            try:
                self._serve()
            except PortTaken:
                # Taken between the choice and etcd's start. A port that the caller asked for is not replaced.
                if not (self._ports_are_ours and left):
                    raise
            else:
                break
        self._served = True
        if self.access.users:
            self.access.enable_auth(self.binary, self.endpoints)

    def _take_ports(self) -> None:
        if self._ports_are_ours:
            client, peer = free_ports(2, self._settings.host)
        else:
            client, (peer,) = self._settings.client_port, free_ports(1, self._settings.host)
        self._settings = self._settings.at(client, peer)

    def _empty(self) -> None:
        self._must_have_served()
        if self.running:
            self.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def _serve(self) -> None:
        self.launch()
        wait_until_healthy(self._running_process(), self._settings, self.access.context())

    def _must_have_served(self) -> None:
        if not self._served:
            raise EtcdError("this etcd server has not been started: call start() or use it in a with block")

    @property
    def _called(self) -> str:
        return "this etcd server"
