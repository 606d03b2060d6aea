"""One etcd process under test: started, stopped, killed, frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from instep.errors import EtcdDenied, EtcdError, SettingsError
from instep.etcd_server.binaries import EtcdBinary
from instep.etcd_server.health import MemberStatus, answers_peers, authenticate, is_healthy, is_open, status, wait_until
from instep.etcd_server.member import START_TIMEOUT_S, Member, check_ports, command, failure
from instep.etcd_server.process import ServerProcess
from instep.testing._access import Access
from instep.testing._resources import Resources
from instep.testing._slow import slowed


class EtcdMember:
    """One real etcd of a cluster, to be broken on purpose; `EtcdServer` and `EtcdCluster` make them.

    Its ports and its data stay the same over kills and restarts. Not for use from several threads at once.
    Faults touch this process only: its clock is the machine's, so no member's clock can be stepped.
    """

    def __init__(
        self, binary: EtcdBinary, settings: Member, access: Access, resources: Resources, *, log: Path
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
        """Its name within its cluster."""
        return self._settings.name

    @property
    def version(self) -> str:
        """The server's version, such as "3.5.16"."""
        return self.binary.version

    @property
    def data_dir(self) -> Path:
        """The folder of its data."""
        return self._settings.data_dir

    @property
    def endpoint(self) -> str:
        """Where clients reach it: through its client proxy where it has one."""
        return self._settings.advertised_client_url

    @property
    def direct_endpoint(self) -> str:
        """Where this machine reaches it past any proxy."""
        return self._settings.client_url

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the process lives, paused or not."""
        process = self._process
        return process is not None and process.exit_status is None

    @property
    def paused(self) -> bool:
        """Whether the process lives and is frozen by `pause()`."""
        process = self._process
        return process is not None and process.exit_status is None and process.paused

    @property
    def healthy(self) -> bool:
        """Whether it answers now that it serves and knows a leader; asked past any proxy; takes at most 1 s."""
        return self.running and not self.paused and is_healthy(self.direct_endpoint, self.access.context())

    def status(self) -> MemberStatus:
        """What it says of itself, asked past any proxy; EtcdError when it does not say it within some 2 s."""
        context = self.access.context()
        try:
            return status(self.direct_endpoint, context, self._token)
        except EtcdDenied:
            # Recent patch releases tell nobody but users; a token dies with its member, and in time.
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
        """Start the process on the same ports and data, and return at once; nothing when it runs."""
        if self.running:
            return
        if self._resources.released:
            raise EtcdError(f"{self._called} has been closed: make a new one")
        check_ports(self._settings)
        self._resources.processes[self.name] = ServerProcess(command(self.binary, self._settings), log=self.log)

    def start(self) -> Self:
        """Start it when it does not run, and wait until its client port is open, at most 30 s.

        It need not serve then: that takes a quorum, for which `wait_healthy` waits. Raises EtcdError with the
        end of its log when it ends instead.
        """
        self.launch()
        host, port = self._settings.reachable_host, self._settings.client_port
        self._wait(lambda: is_open(host, port), START_TIMEOUT_S)
        return self

    def wait_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when it serves and knows a leader; EtcdError with the end of its log when it does not in time."""
        self._wait(lambda: self.healthy, timeout_s)

    def wait_for_peers(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when it answers other members, which it does without a quorum; errors as of `wait_healthy`."""
        url = self._settings.peer_url
        self._wait(lambda: answers_peers(url), timeout_s)

    def stop(self) -> None:
        """End it in order (paused or not), after 5 s by force. Data and ports are kept for `start()`."""
        if self._process is not None:
            self._process.stop()

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same ports and the same data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); it is gone on return. `restart()` brings it back."""
        self._running_process().kill()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing is answered. No thread runs on return."""
        self._running_process().pause()

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        self._running_process().resume()

    @contextlib.contextmanager
    def slow_disk(self, delay_ms: int) -> Iterator[None]:
        """Let each fsync and fdatasync take `delay_ms` longer inside the block, or until the member ends.

        For a member made with `fsync=True`. strace does it, and makes every system call of the member slower
        too. SettingsError where there is no strace, or it may not trace: ask `slow_disk_refusal()` first.
        """
        syncs = self._settings.fsync or self.binary.release < (3, 5)
        if not syncs:
            raise SettingsError(f"{self._called} never waits for its disk: make it with fsync=True")
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
