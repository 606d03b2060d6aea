"""The id of the lease that this node's agent holds, kept beside its socket, for its successor if it is killed.

The successor puts the node's workers and its candidate for leader on a lease of its own, so a leader keeps its term and
its token, and revokes the former lease with what else was on it.
"""

from __future__ import annotations

import logging

from instep.runtime import RuntimeFolder

log = logging.getLogger("instep")


class LeaseFile:
    """Promise: `read` gives the lease that `write` was given last in this folder and this boot of this machine, 0 for
    none. A copy of the folder gives 0, because the lease may be in use where it was copied. If the file cannot be
    read or written, that is logged, and the former lease ends after its TTL."""

    def __init__(self, folder: RuntimeFolder) -> None:
        self._folder = folder
        self._path = folder.lease

    def __repr__(self) -> str:
        return f"LeaseFile({self._path})"

    def read(self) -> int:
        try:
            lease, _, place = self._path.read_text().partition(" ")
            return int(lease, 16) if place and place == self._folder.place() else 0
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.warning("the id of the former agent's lease cannot be read: that lease ends after its TTL (%s)", error)
            return 0

    def write(self, lease_id: int) -> None:
        part = self._path.with_suffix(".part")
        try:
            part.write_text(f"{lease_id:x} {self._folder.place()}")
            part.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: this agent's lease outlives it if it is killed (%s)", self._path, error)
