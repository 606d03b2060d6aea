"""Host names that resolve to addresses of this machine, and to other ones when a fault moves them.

A process that has called `enter` sees a hosts file of its own in place of /etc/hosts, and so do all that it starts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HOSTS: Final = Path("/etc/hosts")
_ENTERED: Final = "CHAOS_HOSTS"
"""Set in a process that has its own hosts file, to the path under which that can be written."""
_WAYS: Final = (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount"))


def enter() -> None:
    """Replaces this process by itself in a mount namespace with a hosts file of its own.

    Limit: where the kernel allows no such namespace it returns, and `can_move` says so.
    """
    if _ENTERED in os.environ:
        return
    way = next((way for way in _WAYS if _works((*way, "true"))), None)
    if way is None:
        return
    path = Path(tempfile.mkdtemp(prefix="instep-hosts-")) / "hosts"
    shutil.copy(HOSTS, path)
    mounted = f'mount --bind "{path}" {HOSTS} && exec "$@"'
    environment = {**os.environ, _ENTERED: str(path)}
    os.execvpe(way[0], [*way, "sh", "-c", mounted, "sh", *sys.orig_argv], environment)


def leave() -> None:
    """Removes the file. Call it at the end of a process that has called `enter`."""
    if (path := os.environ.get(_ENTERED)) is not None:
        shutil.rmtree(Path(path).parent, ignore_errors=True)


def can_move() -> bool:
    """Whether names can be given addresses here."""
    return _ENTERED in os.environ


def publish(addresses: Mapping[str, str]) -> None:
    """Publishes the addresses of these names; other published names remain.

    The file is written in place: its mount would not follow another one.
    """
    path = Path(os.environ[_ENTERED])
    kept = [line for line in path.read_text().splitlines() if not set(line.split()[1:]) & set(addresses)]
    lines = [*kept, *(f"{address} {name}" for name, address in addresses.items())]
    path.write_text("".join(f"{line}\n" for line in lines))


def _works(command: tuple[str, ...]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
