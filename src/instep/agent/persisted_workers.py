"""The node's workers that train, in a file beside the agent's socket, for the next agent after a crash.

Without it, the next agent would not know a worker before its next boundary. A worker that waits in a collective for
a dead rank never reaches one, and the dead rank could not be replaced.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from instep.agent.connection import DisconnectedWorker
from instep.agent.workers import LocalWorker
from instep.protocol.records import Agreed, Member, Plan
from instep.protocol.schema import Schema
from instep.runtime import RuntimeFolder
from instep.version import VERSION
from instep.wire.codec import Document, from_json, to_json

log = logging.getLogger("instep")

MOST_LINES = 50
"""The file is written again when it is longer than so many lines."""


class Entry(Document):
    """One worker. `started` is when its process began; `member` is its registration."""

    pid: int
    started: int
    member: Mapping[str, Any]
    schema: Mapping[str, Any] | None = None
    epoch: int = 0
    agreed: Agreed | None = None
    plan: Plan | None = None
    told: Plan | None = None


class Kept(Document):
    place: str
    workers: tuple[Entry, ...]


class PersistedWorkers(Protocol):
    """What a node keeps its workers in."""

    def save(self, workers: Iterable[LocalWorker]) -> None:
        """Called before a worker is sent a view, a plan or a commit: the file must not know less than the worker."""

    def load(self, node: str, on_died: Callable[[Any], None]) -> list[LocalWorker]:
        """The workers that still live, each without a connection."""


class PersistedWorkersFile:
    """The file: its last line that can be read holds the workers. It is ignored in a copy of the folder, where it
    describes workers of another node. Lines are appended, because creating or renaming a file waits for other
    processes that sync files, such as etcd.

    Limit: it outlives processes, not a restart of the machine. A worker whose pid is not visible (another pid
    namespace) is not kept. Errors of the file are logged, and the agent continues without it.
    """

    def __init__(self, folder: RuntimeFolder) -> None:
        self._folder = folder
        self._path = folder.persisted_workers
        self._file: int | None = None
        """The descriptor that lines are appended to."""
        self._starts: dict[int, int] = {}
        """By pid, when the process of each saved worker began: it is read once."""

    def __repr__(self) -> str:
        return f"PersistedWorkersFile({self._path})"

    def save(self, workers: Iterable[LocalWorker]) -> None:
        saved = [worker for worker in workers if worker.view and worker.connection.pid > 0]
        pids = (worker.connection.pid for worker in saved)
        self._starts = {pid: self._starts.get(pid) or _started(pid) for pid in pids}
        kept = tuple(_entry(worker, self._starts[worker.connection.pid]) for worker in saved)
        try:
            line = json.dumps(to_json(Kept(self._folder.place(), kept))).encode("ascii") + b"\n"
            if self._file is None or not _has_room(self._file, len(line)):
                self._file = self._new_file(line)
            elif os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            log.warning("the list of workers %s cannot be written: %s", self._path, error)
            self._path.unlink(missing_ok=True)  # an old file would name workers that have left

    def _new_file(self, line: bytes) -> int:
        """A descriptor to append to the file, which holds only `line`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        part = self._path.with_suffix(".part")
        part.write_bytes(line)
        part.replace(self._path)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def has_living(self) -> bool:
        """Whether one of them still lives."""
        return bool(self._living())

    def load(self, node: str, on_died: Callable[[Any], None]) -> list[LocalWorker]:
        try:
            return [_worker(entry, node, on_died) for entry in self._living()]
        except ValueError as error:
            log.warning("the list of workers %s cannot be used: %s", self._path, error)
            return []

    def _living(self) -> list[Entry]:
        """Entries of processes that still run."""
        try:
            kept = _newest(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("the list of workers %s cannot be used: %s", self._path, error)
            return []
        if not kept.place or kept.place != self._folder.place():
            return []
        return [entry for entry in kept.workers if entry.started and _started(entry.pid) == entry.started]


def _has_room(file: int, size: int) -> bool:
    """False also if the file has been removed, for example by a cleanup of /tmp."""
    found = os.fstat(file)
    return found.st_nlink > 0 and found.st_size < MOST_LINES * size


def _newest(data: bytes) -> Kept:
    """What the last whole line holds: an agent that is killed while it appends a line has not sent its news yet."""
    whole, _, _ = data.rpartition(b"\n")
    return from_json(Kept, json.loads(whole.rpartition(b"\n")[2]))


def _entry(worker: LocalWorker, started: int) -> Entry:
    pid, record = worker.connection.pid, worker.record().model_dump(exclude_none=True)
    held = worker.agreed, worker.plan, worker.told
    return Entry(pid, started, record, worker.schema.document, worker.epoch, *held)


def _worker(entry: Entry, node: str, on_died: Callable[[Any], None]) -> LocalWorker:
    member = Member.model_validate({**entry.member, "node": node, "version": VERSION})
    worker = LocalWorker(
        member, Schema(entry.schema), DisconnectedWorker(entry.pid, on_died), view=member.view, absent=True
    )
    worker.excused_until = time.monotonic()  # the time without an agent does not count as a stall
    worker.epoch, worker.heard = entry.epoch, member.head.told if member.head is not None else 0
    worker.agreed, worker.plan, worker.told = entry.agreed, entry.plan, entry.told
    return worker


def _started(pid: int) -> int:
    """When the process began, in clock ticks since the machine booted; 0 for none. A pid alone may have been reused."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])
