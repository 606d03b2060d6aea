"""The id of the lease that this node's agent holds, kept beside its socket: its successor revokes it at once.

Else what stood on the lease of an agent that was killed, its candidate for leader above all, would hold its place until
the lease ends.
"""

from __future__ import annotations

import logging
from pathlib import Path

from instep.agent.roster import boot_id

log = logging.getLogger("instep")


class LeaseFile:
    """Promise: `read` gives the lease that `write` was given last in this boot of this machine, 0 for none. A copy of
    the folder on another machine gives 0, because the lease may be in use on the first one. Trouble with the file is
    logged, and costs the time until the lease ends."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"LeaseFile({self._path})"

    def read(self) -> int:
        try:
            boot, lease = self._path.read_text().split()
            return int(lease, 16) if boot == boot_id() else 0
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.warning("the lease of this node's former agent cannot be read, and ends by itself: %s", error)
            return 0

    def write(self, lease_id: int) -> None:
        part = self._path.with_suffix(".part")
        try:
            part.write_text(f"{boot_id()} {lease_id:x}")
            part.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: this agent's lease outlives it if it is killed (%s)", self._path, error)
