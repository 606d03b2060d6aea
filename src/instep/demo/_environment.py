"""What one demo runs in: a temporary etcd, a folder, an environment for its processes, and their end."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import instep
from instep.discovery import LOOPBACK
from instep.errors import SettingsError
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
LEAVE_S: Final = 4.0
"""How long the agent may take to exit after its last worker."""
_POLL_S: Final = 0.05
_PORT_TRIES: Final = 5


class Sandbox:
    """A context manager: a folder, and an etcd of one member on loopback with its data there, which the kernel ends
    with this process. On exit it ends every process of the demo and removes the folder.
    """

    def __init__(self) -> None:
        self.etcd = find_etcd()
        self.endpoint = ""
        self.folder = Path(tempfile.mkdtemp(prefix="instep-demo-"))
        self._mark = secrets.token_hex(8)
        self._server: ServerProcess | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
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
            wait_until(lambda: not self.processes(), timeout_s=LEAVE_S, poll_s=_POLL_S)
            for pid in self.processes():
                _kill(pid, self._mark)
            self._clear()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        """Returns when etcd serves. Raises EtcdError if it does not within 30 s."""
        for left in reversed(range(_PORT_TRIES)):
            client_port, peer_port = free_ports(2, LOOPBACK)
            member = MemberSettings(
                name="demo",
                data_dir=self.folder / "etcd",
                host=LOOPBACK,
                client_port=client_port,
                peer_port=peer_port,
                fsync=False,
            )
            self._server = ServerProcess(command(self.etcd, member), log=self.folder / "etcd.log")
            self.endpoint = member.client_url
            try:
                wait_until_healthy(self._server, member, None)
            except PortTaken:  # another process took it in the meantime
                if not left:
                    raise
            else:
                return

    def _clear(self) -> None:
        if self._server is not None:
            self._server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def settings(self) -> Settings:
        """How the demo reaches its etcd, independent of the user's environment."""
        return Settings(endpoints=(self.endpoint,), namespace=DEFAULT_NAMESPACE)

    def etcdctl(self, *args: str) -> str:
        """Runs etcdctl and returns what it prints. Raises EtcdError with its error output."""
        return run_etcdctl(self.etcd, [f"--endpoints={self.endpoint}"], args)

    def processes(self) -> list[int]:
        """The pids of the training's processes, which inherit the tag."""
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
        return [pid for pid in pids if _carries(pid, self._mark)]

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
            "INSTEP_ETCD": self.endpoint,
            "INSTEP_RUNTIME_DIR": str(self.folder / "node"),
            TAG: self._mark,
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


def _carries(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # exited, or of another user
    return f"{TAG}={mark}".encode() in environment.split(b"\0")


def _kill(pid: int, mark: str) -> None:
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            # Checked again while the pidfd pins the process: the pid may have been reused.
            if _carries(pid, mark):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
