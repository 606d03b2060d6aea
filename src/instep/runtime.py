"""The folder in which the workers of one node find their agent: mode 0700, and the same for all workers of a run.

`INSTEP_RUNTIME_DIR` moves it, as for two nodes on one machine, or for a volume shared with a sidecar.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from instep.errors import SettingsError
from instep.settings import Settings
from instep.system_errors import explained

_INHERITED: Final = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF", "OPENSSL_MODULES"),
        *("RES_OPTIONS", "LOCALDOMAIN", "HOSTALIASES"),
        *("INSTEP_AGENT_LOG", "INSTEP_RUNTIME_DIR", "INSTEP_TAG"),
    )
)
_INHERITED_PREFIXES: Final = ("PYTHON", "LD_", "LC_", "GRPC_", "MALLOC_", "NSS_WRAPPER_", "COVERAGE_", "COV_CORE_")

MAX_SOCKET_PATH = 107
"""Linux's limit for the path of a unix socket."""


def process_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that Instep's own processes inherit: those that Python, its libraries and name resolution need, and
    `INSTEP_TAG`, an arbitrary text that marks all processes of one job.

    Promise: no etcd credential and no secret of the training script is in the environment of a process that lives as
    long as the run.
    """
    return {
        name: value for name, value in environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


class RuntimeFolder:
    """The paths of one run on this node. Creates the folder, and refuses one that other users could write to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _make_private(path.parent)
        _make_private(path)
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH:
            raise SettingsError(
                f"the path {self.socket} is too long for a socket: set INSTEP_RUNTIME_DIR to a shorter one"
            )

    @classmethod
    def of(cls, run: str, settings: Settings) -> RuntimeFolder:
        """The folder of a run. Workers with the same run, namespace and etcd share one folder, and so one agent."""
        import hashlib  # late: it loads a cryptographic library, which not every trainer has loaded

        identity = "\0".join([run, settings.namespace, *sorted(settings.endpoints), settings.user or ""])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return cls(_base() / digest)

    @property
    def socket(self) -> Path:
        return self.path / "agent.sock"

    @property
    def log(self) -> Path:
        return self.path / "agent.log"

    @property
    def node(self) -> Path:
        """The file with the node's name: an agent that starts after a crash keeps the name."""
        return self.path / "node"

    @property
    def persisted_workers(self) -> Path:
        """The file with the workers of this node, for the agent that starts after a crash."""
        return self.path / "workers"

    @property
    def lease(self) -> Path:
        """The file with the id of the agent's lease, for the agent that starts after a crash."""
        return self.path / "lease"

    @property
    def end(self) -> Path:
        """The file with the reason why the last agent ended, for the log of the next one."""
        return self.path / "end"

    def place(self) -> str:
        """Identifies this folder on this machine since its boot, as opposed to a copy of it. Empty if unknown.

        Limit: machines that continue from the same snapshot of a running machine, including memory, have the same
        place.
        """
        boot = _read("/proc/sys/kernel/random/boot_id")
        found = self.path.stat()
        return f"{boot} {_read('/etc/machine-id')} {found.st_dev:x}:{found.st_ino:x}" if boot else ""

    def claim(self) -> int | None:
        """A locked descriptor, whose holder is this folder's agent; None if there is an agent already.

        The lock belongs to the open file: an agent that inherits the descriptor holds it, and the kernel releases it
        when the last holder exits. Raises SettingsError if no file can be created in the folder.
        """
        for folder in (self.path.parent, self.path):
            _make_private(folder)  # a cleanup of /tmp may have removed it
        try:
            descriptor = os.open(self.path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def _unusable(path: Path, error: OSError) -> SettingsError:
    reason = explained(error, "set INSTEP_RUNTIME_DIR to another folder")
    return SettingsError(f"the folder {path} of Instep's agent cannot be used: {reason}")


def _base() -> Path:
    given = os.environ.get("INSTEP_RUNTIME_DIR")
    return Path(given).absolute() if given else Path("/tmp") / f"instep-{os.getuid()}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise _unusable(path, error) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SettingsError(
            f"the folder {path} must be a directory of yours that nobody else can enter (mode 0700): "
            "fix its owner and mode, or set INSTEP_RUNTIME_DIR to another folder"
        )
