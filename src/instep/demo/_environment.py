"""What one demo runs in: a temporary etcd, a folder, an environment for its processes, and the processes."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import instep
from instep.discovery import LOOPBACK
from instep.errors import InstepError, SettingsError
from instep.etcd_server.binaries import find_etcd
from instep.etcd_server.etcdctl import run_etcdctl
from instep.etcd_server.health import wait_until
from instep.etcd_server.member import MemberSettings, PortTaken, command, wait_until_healthy
from instep.etcd_server.ports import free_ports
from instep.etcd_server.process import ServerProcess
from instep.names import DEFAULT_NAMESPACE
from instep.settings import Settings

SCRIPT: Final = "train_char_transformer.py"
RUN: Final = "char-transformer"

_FOREIGN = ("INSTEP_", "ETCDCTL_", "PET_", "TORCHELASTIC_")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")

TAG: Final = "INSTEP_TAG"
"""Environment variable that all processes of one demo inherit. Process groups and parents would not find all of them:
torchrun's workers have their own sessions, and the node's agent is re-parented."""
END_S: Final = 8.0
"""torchrun first stops its workers after a SIGTERM."""
LEAVE_S: Final = 4.0
"""How long the agent may take to exit after its last worker."""
_POLL_S: Final = 0.05
_PORT_TRIES: Final = 5
_TAIL_LINES: Final = 25
# Runs in the child before the program replaces it. The kernel then sends SIGTERM if the demo is killed.
_END_WITH_PARENT = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGTERM = 1, 15
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class TemporaryEtcd:
    """An etcd of one member on loopback, with its data in `folder`. The kernel ends it with this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binary = find_etcd()
        self._process: ServerProcess | None = None
        self.endpoint = ""

    @property
    def version(self) -> str:
        return self._binary.version

    @property
    def has_etcdctl(self) -> bool:
        return self._binary.etcdctl is not None

    def start(self) -> None:
        """Returns when it serves. Raises EtcdError if it does not serve within 30 s."""
        for left in reversed(range(_PORT_TRIES)):
            try:
                self._start_on(*free_ports(2, LOOPBACK))
            except PortTaken:  # another process took it in the meantime
                if not left:
                    raise
            else:
                return

    def etcdctl(self, *args: str) -> str:
        """Runs etcdctl and returns what it prints. Raises EtcdError with its error output."""
        return run_etcdctl(self._binary, [f"--endpoints={self.endpoint}"], args)

    def close(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _start_on(self, client_port: int, peer_port: int) -> None:
        member = MemberSettings(
            name="demo",
            data_dir=self._folder / "etcd",
            host=LOOPBACK,
            client_port=client_port,
            peer_port=peer_port,
            fsync=False,
        )
        self._process = ServerProcess(command(self._binary, member), log=self._folder / "etcd.log")
        wait_until_healthy(self._process, member, None)
        self.endpoint = member.client_url


class Sandbox:
    """A context manager. On exit it ends every process of the demo and removes its folder."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="instep-demo-"))
        self.server = TemporaryEtcd(self.folder)

    def __enter__(self) -> Self:
        try:
            self.server.start()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not interrupt the cleanup, which takes a few seconds at most.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            sweep(self.mark)
            self._clear()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _clear(self) -> None:
        self.server.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def settings(self) -> Settings:
        """How the demo reaches its etcd, independent of the user's environment."""
        return Settings(endpoints=(self.server.endpoint,), namespace=DEFAULT_NAMESPACE)

    def subfolder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def environment(self) -> dict[str, str]:
        """For the training: this etcd, one thread per rank, loopback only, and no variable of a surrounding job."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN) and name not in _RANKS
        }
        return inherited | {
            "INSTEP_ETCD": self.server.endpoint,
            "INSTEP_RUNTIME_DIR": str(self.folder / "node"),
            TAG: self.mark,
            "TMPDIR": str(self.subfolder("tmp")),  # torch does not remove its temporary folders
            "PYTHONPATH": _python_path(),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": "lo",
        }


def training_script() -> Path:
    """The example script: in this package in an installed wheel, in examples/ of a checkout."""
    packed = Path(__file__).with_name(SCRIPT)
    return packed if packed.is_file() else Path(__file__).parents[3] / "examples" / SCRIPT


def check_needs() -> None:
    """Raises SettingsError, with the fix, if torch or numpy is missing."""
    missing = [name for name in ("torch", "numpy") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the demo trains with PyTorch, and {' and '.join(missing)} is not installed: pip install 'instep[demo]' "
            "(a smaller torch, for CPUs alone: add --extra-index-url https://download.pytorch.org/whl/cpu)"
        )


def _python_path() -> str:
    # The training must import the same checkout as this process.
    parent = Path(instep.__file__).resolve().parent.parent
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(known if parent.name in ("site-packages", "dist-packages") else [str(parent), *known])


class Program:
    """A Python program in its own session, so Ctrl-C reaches only the demo, which then stops the program.

    An async context manager. On exit it sends SIGTERM, and SIGKILL after 8 s.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, log: Path, show: Callable[[str], None]
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._show = show
        self._output: IO[bytes] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._output = self._log.open("wb")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), sys.executable),
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=dict(self._environment),
            start_new_session=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._output is not None
        self._output.close()
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), END_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def wait(self) -> None:
        """Returns when it exits with status 0. Otherwise shows the end of its log and raises InstepError."""
        assert self._process is not None
        status = await self._process.wait()
        if status != 0:
            lines = self._log.read_text(errors="replace").splitlines()
            self._show("\n".join(lines[-_TAIL_LINES:]))
            raise InstepError(f"{self._log.stem} ended with status {status}: the end of its log is shown above")


def sweep(mark: str) -> list[int]:
    """Waits up to 4 s until all processes tagged with `mark` have exited, then kills the rest. Returns their pids."""
    wait_until(lambda: not tagged(mark), timeout_s=LEAVE_S, poll_s=_POLL_S)
    return [pid for pid in tagged(mark) if _kill(pid, mark)]


def tagged(mark: str) -> list[int]:
    """The pids of the processes tagged with `mark`."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in pids if _carries(pid, mark)]


def _carries(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # exited, or of another user
    return f"{TAG}={mark}".encode() in environment.split(b"\0")


def _kill(pid: int, mark: str) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Checked again while the pidfd pins the process: the pid may have been reused.
        if not _carries(pid, mark):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
