"""One etcd process of a test, with faults on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from instep.errors import EtcdDenied, EtcdError, SettingsError
from instep.etcd_server.binaries import EtcdBinary
from instep.etcd_server.health import MemberStatus, answers_peers, authenticate, is_healthy, is_open, status, wait_until
from instep.etcd_server.member import START_TIMEOUT_S, MemberSettings, check_ports, command, failure
from instep.etcd_server.process import ServerProcess
from instep.testing._access import Access
from instep.testing._resources import Resources
from instep.testing._slow import slowed


class EtcdMember:
    """One real etcd process of an `EtcdServer` or `EtcdCluster`, with faults as methods.

    It keeps its ports and its data across kills and restarts. Do not use it from several threads at once. Limit: faults
    affect only this process; its clock is the machine's, and cannot be changed.
    """

    def __init__(
        self, binary: EtcdBinary, settings: MemberSettings, access: Access, resources: Resources, *, log: Path
    ) -> None:
        self.binary = binary
        self.access = access
        self.log = log
        self._settings = settings
        self._token: str | None = None
        self._resources = resources

    # -- facts -----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return self._settings.name

    @property
    def version(self) -> str:
        """The server's version, such as "3.5.16"."""
        return self.binary.version

    @property
    def data_dir(self) -> Path:
        """Its data folder."""
        return self._settings.data_dir

    @property
    def endpoint(self) -> str:
        """The client URL, through its proxy if it has one."""
        return self._settings.advertised_client_url

    @property
    def direct_endpoint(self) -> str:
        """The client URL that bypasses any proxy."""
        return self._settings.client_url

    @property
    def pid(self) -> int:
        """The pid of the running process."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the process runs, paused or not."""
        process = self._process
        return process is not None and process.exit_status is None

    @property
    def paused(self) -> bool:
        """Whether the process is frozen by `pause()`."""
        process = self._process
        return process is not None and process.exit_status is None and process.paused

    @property
    def healthy(self) -> bool:
        """Whether it serves and knows a leader now. Bypasses any proxy; takes at most 1 s."""
        return self.running and not self.paused and is_healthy(self.direct_endpoint, self.access.context())

    def status(self) -> MemberStatus:
        """Its own status, bypassing any proxy. Raises EtcdError without an answer in about 2 s."""
        context = self.access.context()
        try:
            return status(self.direct_endpoint, context, self._token)
        except EtcdDenied:
            # Recent patch releases require a user. A token ends with its member, and after its TTL.
            if not self.access.users:
                raise
        self._token = authenticate(self.direct_endpoint, context, *self.access.first_user())
        return status(self.direct_endpoint, context, self._token)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        process = self._process
        return process.log_tail(lines) if process is not None else ""

    # -- life ------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Starts the process on the same ports and data and returns at once. Does nothing if it runs."""
        if self.running:
            return
        if self._resources.released:
            raise EtcdError(f"{self._called} has been closed: create a new one")
        check_ports(self._settings)
        self._resources.processes[self.name] = ServerProcess(command(self.binary, self._settings), log=self.log)

    def start(self) -> Self:
        """Starts it if it is not running, and waits until its client port is open, at most 30 s.

        It may not serve yet: that needs a quorum, see `wait_healthy`. Raises EtcdError with the end of its log if it
        exits instead.
        """
        self.launch()
        host, port = self._settings.reachable_host, self._settings.client_port
        self._wait(lambda: is_open(host, port), START_TIMEOUT_S)
        return self

    def wait_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when it serves and knows a leader. Raises EtcdError with the end of its log after `timeout_s`."""
        self._wait(lambda: self.healthy, timeout_s)

    def wait_for_peers(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when it answers other members, which needs no quorum. Raises as `wait_healthy` does."""
        url = self._settings.peer_url
        self._wait(lambda: answers_peers(url), timeout_s)

    def stop(self) -> None:
        """Stops it with SIGTERM, paused or not, and with SIGKILL after 5 s. Keeps data and ports for `start()`."""
        if self._process is not None:
            self._process.stop()

    def restart(self) -> None:
        """Stops it if it runs, and starts it on the same ports and data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kills it like a crash (SIGKILL) and waits until it is gone. `restart()` starts it again."""
        self._running_process().kill()

    def pause(self) -> None:
        """Freezes it (SIGSTOP): connections stay open without answers. All threads have stopped on return."""
        self._running_process().pause()

    def resume(self) -> None:
        """Continues a paused process (SIGCONT)."""
        self._running_process().resume()

    @contextlib.contextmanager
    def slow_disk(self, delay_ms: int) -> Iterator[None]:
        """Delays each fsync and fdatasync by `delay_ms` inside the block, or until the member ends.

        For a member with `fsync=True`. It uses strace, which also slows all other system calls of the member. Raises
        SettingsError if strace is missing or may not trace: check `slow_disk_refusal()` first.
        """
        syncs = self._settings.fsync or self.binary.release < (3, 5)
        if not syncs:
            raise SettingsError(f"{self._called} never waits for its disk: create it with fsync=True")
        log = self.log.with_suffix(".strace.log")
        tracer = self._resources.processes[f"{self.name}.strace"] = slowed(self.pid, delay_ms, log)
        try:
            yield
        finally:
            tracer.stop()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.running else "not running"
        return f"<{type(self).__name__} {self.name} {self.version} {self.endpoint} {state}>"

    # -- inside ----------------------------------------------------------------------------------------------

    @property
    def _process(self) -> ServerProcess | None:
        return self._resources.processes.get(self.name)

    @property
    def _called(self) -> str:
        return f"etcd member {self.name}"

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        process = self._running_process()
        settled = wait_until(lambda: process.exit_status is not None or condition(), timeout_s=timeout_s)
        if not settled or process.exit_status is not None:
            raise failure(process, timeout_s)

    def _running_process(self) -> ServerProcess:
        process = self._process
        if process is None or process.exit_status is not None:
            raise EtcdError(f"{self._called} is not running")
        return process
