"""A real etcd server for a test: started, broken and restarted at will."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from instep.errors import EtcdError, SettingsError
from instep.testing._access import Access, users
from instep.testing._binaries import find_etcd
from instep.testing._certificates import Certificates
from instep.testing._command import Member, command
from instep.testing._etcdctl import run_etcdctl
from instep.testing._health import is_healthy
from instep.testing._launch import PortTaken, check_ports, wait_until_healthy
from instep.testing._ports import free_ports
from instep.testing._process import ServerProcess

_PORT_TRIES = 5


class EtcdServer:
    """A real etcd of one member on loopback, for a `with` block or between `start()` and `close()`.

    `port=0` takes free ports. `version` is "3.5.16", "3.5" or None for the newest at hand. `tls=True` demands
    client certificates; `certificates` has what a client needs. `auth="user:password"`, or a mapping of users
    to passwords, turns authentication on; each user has the root role. Data live in `data_dir`, or in a
    temporary folder that goes with `close()`. `fsync=False` lets data survive a killed server, not a killed
    machine (etcd 3.5 and newer; 3.4 always syncs). `extra_args` come last on etcd's command line and win. The
    server dies with this process, however that ends. One server is not for use from several threads at once.
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
        self.binary = find_etcd(version)
        names = users(auth)
        self._resources = _Resources(Path(tempfile.mkdtemp(prefix="instep-etcd-")))
        self._release = weakref.finalize(self, self._resources.release)
        folder = self._resources.folder
        self.access = Access(Certificates(folder / "certificates") if tls else None, names)
        self.data_dir = Path(data_dir).absolute() if data_dir is not None else folder / "data"
        self.log = folder / "etcd.log"
        self._ports_are_ours = port == 0
        self._served = False
        self._member = Member(
            name=name,
            data_dir=self.data_dir,
            host=host,
            client_port=port,
            certificates=self.access.certificates,
            fsync=fsync,
            auth_token_ttl_s=auth_token_ttl_s,
            cheap_passwords=bool(names),
            extra_args=tuple(extra_args),
        )

    # -- facts -----------------------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """The server's version, such as "3.5.16"."""
        return self.binary.version

    @property
    def endpoint(self) -> str:
        """The client URL: http://127.0.0.1:port, https with TLS. It stays the same over restarts."""
        return self._known_member().client_url

    @property
    def endpoints(self) -> list[str]:
        """The client URLs of all members: here one."""
        return [self.endpoint]

    @property
    def port(self) -> int:
        """The client port."""
        return self._known_member().client_port

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the process lives, paused or not."""
        process = self._resources.process
        return process is not None and process.exit_status is None

    @property
    def healthy(self) -> bool:
        """Whether it answers now that it serves; takes at most 1 s."""
        return self.running and is_healthy(self.endpoint, self.access.context())

    @property
    def certificates(self) -> Certificates:
        """The certificates of a server with TLS."""
        if self.access.certificates is None:
            raise SettingsError("this server has no TLS: make it with EtcdServer(tls=True)")
        return self.access.certificates

    def environment(self) -> dict[str, str]:
        """The INSTEP_* variables with which a client process reaches this server as its first user."""
        return self.access.environment(self.endpoints, self._resources.folder)

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it and wait until it serves, at most 30 s; on the same data and ports when it ran before.

        Raises EtcdError with the end of its log when it ends instead, and at once when its port is taken.
        """
        if self.running:
            return self
        if self._served:
            self._launch(self._member)
        else:
            self._first_launch()
        return self

    def stop(self) -> None:
        """End it in order (paused or not), after 5 s by force. Data and ports are kept for `start()`."""
        if self._resources.process is not None:
            self._resources.process.stop()

    def close(self) -> None:
        """End it for good and remove its temporary folder, log included; a `data_dir` of one's own stays."""
        if not self.data_dir.is_relative_to(self._resources.folder):
            self.stop()
        self._release()

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same ports and the same data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); it is gone on return. `restart()` brings it back."""
        self._running_process().kill()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing is answered."""
        self._running_process().signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        self._running_process().signal(signal.SIGCONT)

    def etcdctl(self, *args: str, check: bool = True) -> str:
        """Run etcdctl with the server's certificates and its first user; flags in `args` win over those.

        Returns what it printed, without the last newline. A failure raises EtcdError; with `check=False` its
        complaint is returned after what was printed. At most 30 s.
        """
        return run_etcdctl(self.binary, self.access.flags(self.endpoints), args, check=check)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        place = self._member.client_url if self._served else "not started"
        state = f"pid {self.pid}" if self.running else "not running"
        extras = (" tls" if self.access.certificates else "") + (" auth" if self.access.users else "")
        return f"<EtcdServer {self.version} {place} {state}{extras}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _first_launch(self) -> None:
        for left in reversed(range(_PORT_TRIES)):
            try:
                self._launch(self._with_ports())
            except PortTaken:
                # Taken between our choice and etcd's start; a port that was asked for is the caller's to
                # free.
                if not (self._ports_are_ours and left):
                    raise
            else:
                break
        self._served = True
        if self.access.users:
            self.access.enable_auth(self.binary, self.endpoints)

    def _with_ports(self) -> Member:
        if self._ports_are_ours:
            client, peer = free_ports(2, self._member.host)
            return self._member.at(client, peer)
        (peer,) = free_ports(1, self._member.host)
        return self._member.at(self._member.client_port, peer)

    def _launch(self, member: Member) -> None:
        if self._release.alive is False:
            raise EtcdError("this etcd server has been closed: make a new one")
        check_ports(member)
        self._resources.process = process = ServerProcess(command(self.binary, member), log=self.log)
        wait_until_healthy(process, member, self.access.context())
        self._member = member

    def _known_member(self) -> Member:
        if not self._served:
            raise EtcdError("this etcd server has not been started: call start() or use it in a with block")
        return self._member

    def _running_process(self) -> ServerProcess:
        process = self._resources.process
        if process is None or process.exit_status is not None:
            raise EtcdError("this etcd server is not running")
        return process


class _Resources:
    """What must be given back when a server is closed, or dropped without that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: ServerProcess | None = None
        self._owner = os.getpid()

    def release(self) -> None:
        """Kill the process and remove the folder; nothing in a forked child, whose exit must not end them."""
        if os.getpid() != self._owner:
            return
        if self.process is not None:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
