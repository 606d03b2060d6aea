"""The folder where the workers of one node meet their agent: 0700, ours, and the same for all workers of a run.

`INSTEP_RUNTIME_DIR` moves it (two nodes on one machine, or a volume shared with a sidecar).
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
    """The variables that a process of our own inherits: what Python, the libraries that it loads and name resolution
    need. `INSTEP_TAG`, any text, is among them: it marks all processes of one job.

    Promise: no credential of etcd, and no secret of the training script, is in the environment of a process that lives
    as long as the run.
    """
    return {
        name: value for name, value in environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }


class RuntimeFolder:
    """Paths of one run on this node. Creating it creates the folder, or refuses one that others could write to."""

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
        """Workers with the same run, namespace and etcd share one folder and so one agent."""
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
        """Holds the node's name, so that an agent started after a crash speaks for the same node."""
        return self.path / "node"

    @property
    def roster(self) -> Path:
        """Who trains on this node: for the agent that comes after one that died."""
        return self.path / "roster"

    @property
    def lease(self) -> Path:
        """Holds the id of the agent's lease: for the agent that comes after one that died."""
        return self.path / "lease"

    @property
    def end(self) -> Path:
        """Why the last agent ended, for the log of the next one."""
        return self.path / "end"

    def place(self) -> str:
        """Distinguishes this folder on this machine, since its boot, from any copy of it; empty where that is unknown.

        Limit: machines that continue from one snapshot of a running one, its memory included, have one place.
        """
        boot = _read("/proc/sys/kernel/random/boot_id")
        found = self.path.stat()
        return f"{boot} {_read('/etc/machine-id')} {found.st_dev:x}:{found.st_ino:x}" if boot else ""

    def claim(self) -> int | None:
        """The locked descriptor that makes its holder this folder's agent, or None while there is one.

        The lock belongs to the open file: it passes to an agent that inherits the descriptor, and the kernel frees it
        when the last holder has died. Raises SettingsError for a folder that takes no files.
        """
        for folder in (self.path.parent, self.path):
            _make_private(folder)  # somebody who cleans /tmp may have removed it
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
            "mend it, or set INSTEP_RUNTIME_DIR to another"
        )
