"""Finds the etcd of `instep local`: a small file per user says where it is.

Training processes call `find()`, so it needs only the standard library, one file read and one connection.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from instep.errors import SettingsError

DEFAULT_PORT = 2379
LOOPBACK = "127.0.0.1"

_CONNECT_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEtcd:
    """The running etcd: its endpoint, its process, and the paths of its data and log.

    `started` identifies the process beyond its pid: the boot id of the machine and the start time of the process.
    """

    endpoint: str
    pid: int
    started: str
    version: str
    data_dir: str
    log: str


def home() -> Path:
    """The folder of the local etcd: $XDG_DATA_HOME/instep, by default ~/.local/share/instep. Raises SettingsError if
    the user has no home folder."""
    base = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "share") / "instep"
    except RuntimeError:
        raise SettingsError(
            f"user {os.getuid()} has no home folder (HOME is not set, and there is no entry in passwd): set "
            "XDG_DATA_HOME to a folder for the data of the local etcd"
        ) from None


def find() -> LocalEtcd | None:
    """The local etcd if it runs: its process is the one that was started, and its port answers.

    Takes at most 0.5 s. Opens no connection if none was started.
    """
    known = read()
    return known if known is not None and lives(known) and answers(known.endpoint) else None


def start_of(pid: int) -> str | None:
    """Identifies this process among all that ever have its pid; None if it has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name in parentheses may contain spaces and parentheses.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else f"{boot}/{rest[18]}"


def lives(local: LocalEtcd) -> bool:
    return start_of(local.pid) == local.started


def answers(endpoint: str) -> bool:
    url = urlsplit(endpoint)
    try:
        with socket.create_connection((url.hostname or LOOPBACK, url.port or DEFAULT_PORT), _CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def discovery_file() -> Path:
    return home() / "local.json"


def read() -> LocalEtcd | None:
    try:
        found = json.loads(discovery_file().read_text(encoding="utf-8"))
        if not (isinstance(found["pid"], int) and found["started"]):
            return None
        urlsplit(found["endpoint"]).port  # noqa: B018  # raises for an invalid endpoint
        return LocalEtcd(**{field.name: found[field.name] for field in fields(LocalEtcd)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SettingsError):
        # SettingsError: no home folder, as in a container whose user has no entry in passwd.
        return None


def write(local: LocalEtcd) -> None:
    temporary = discovery_file().with_suffix(".new")
    temporary.write_text(json.dumps(asdict(local), indent=1) + "\n", encoding="utf-8")
    temporary.replace(discovery_file())


def forget(local: LocalEtcd) -> None:
    """Removes the discovery file, unless it describes another etcd by now."""
    if read() == local:
        discovery_file().unlink(missing_ok=True)
