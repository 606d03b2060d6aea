"""What one demo stands on: a throw-away etcd, a folder, an environment for its processes."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import instep
from instep.demo._processes import TAG, sweep
from instep.errors import SettingsError
from instep.names import DEFAULT_NAMESPACE
from instep.settings import Settings
from instep.testing import EtcdServer

SCRIPT: Final = "train_char_transformer.py"
RUN: Final = "char-transformer"

_FOREIGN = ("INSTEP_", "ETCDCTL_", "PET_", "TORCHELASTIC_")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Stage:
    """A context manager. Leaving it ends every process of the demo and removes its folder."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="instep-demo-"))
        self.server = EtcdServer()

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
        # A second Ctrl-C must not leave half of it behind; what follows takes seconds at most.
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
        """How the demo itself reaches its etcd: whatever the user's environment says is not for it."""
        return Settings(endpoints=(self.server.endpoint,), namespace=DEFAULT_NAMESPACE)

    def subfolder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def environment(self) -> dict[str, str]:
        """For the training: this etcd, one thread a rank, loopback alone, and nothing of a job around us."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN) and name not in _RANKS
        }
        return inherited | {
            **self.server.environment(),
            "INSTEP_RUNTIME_DIR": str(self.folder / "node"),
            TAG: self.mark,
            "TMPDIR": str(self.subfolder("tmp")),  # torch leaves folders behind
            "PYTHONPATH": _python_path(),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": "lo",
        }


def training_script() -> Path:
    """The example: packed into this package by the wheel, in examples/ of a checkout."""
    packed = Path(__file__).with_name(SCRIPT)
    return packed if packed.is_file() else Path(__file__).parents[3] / "examples" / SCRIPT


def check_needs() -> None:
    """Raises SettingsError, with the cure, when torch is not there."""
    missing = [name for name in ("torch", "numpy") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the demo trains with PyTorch, and {' and '.join(missing)} is not installed: pip install 'instep[demo]' "
            "(a smaller torch, for CPUs alone: add --extra-index-url https://download.pytorch.org/whl/cpu)"
        )


def _python_path() -> str:
    # A checkout that was put on the path: the training must find the same one.
    parent = Path(instep.__file__).resolve().parent.parent
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(known if parent.name in ("site-packages", "dist-packages") else [str(parent), *known])
