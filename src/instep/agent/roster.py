"""The node's workers that train, kept beside the agent's socket for the agent that comes after a crash.

Without it a worker that waits in a collective for another one that died would be known to nobody until its next
boundary, which it may never come to: the one it waits for could not be replaced.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from instep.agent.absentee import Absentee
from instep.agent.worker import LocalWorker
from instep.coordination.records import Agreed, Member, Plan
from instep.coordination.schema import Schema
from instep.runtime import RuntimeFolder
from instep.version import VERSION

log = logging.getLogger("instep")

T = TypeVar("T")


class Roster(Protocol):
    """What the node needs of it."""

    def save(self, workers: Iterable[LocalWorker]) -> None:
        """Called before a worker is sent a view, a plan or a commit: the roster must not know less than the worker."""

    def load(self, node: str, on_died: Callable[[Any], None]) -> list[LocalWorker]:
        """Those that still live, each absent until it connects."""


class NoRoster:
    """Nothing is kept."""

    def save(self, workers: Iterable[LocalWorker]) -> None: ...

    def load(self, node: str, on_died: Callable[[Any], None]) -> list[LocalWorker]:
        return []


class RosterFile:
    """One in a copy of the folder tells of another node's workers, and is not used.

    Limit: it outlives processes, not the machine; and a worker whose pid cannot be seen (another pid namespace) is
    not kept. Trouble with the file is logged and costs nothing but what it is for."""

    def __init__(self, folder: RuntimeFolder) -> None:
        self._folder = folder
        self._path = folder.roster

    def __repr__(self) -> str:
        return f"RosterFile({self._path})"

    def save(self, workers: Iterable[LocalWorker]) -> None:
        kept = [_entry(worker) for worker in workers if worker.view and worker.connection.pid > 0]
        part = self._path.with_suffix(".part")
        try:
            part.write_text(json.dumps({"place": self._folder.place(), "workers": kept}))
            part.replace(self._path)
        except OSError as error:
            log.warning("the roster %s cannot be written: %s", self._path, error)
            self._path.unlink(missing_ok=True)  # an old one would tell of workers that have left

    def has_living(self) -> bool:
        """Whether any of them still lives."""
        return bool(self._read(lambda entry: entry))

    def load(self, node: str, on_died: Callable[[Any], None]) -> list[LocalWorker]:
        return self._read(lambda entry: _worker(entry, node, on_died))

    def _read(self, make: Callable[[dict[str, Any]], T]) -> list[T]:
        try:
            document = json.loads(self._path.read_text())
            if not document["place"] or document["place"] != self._folder.place():
                return []
            kept = [entry for entry in document["workers"] if entry["started"]]  # not who had died when it was written
            living = [entry for entry in kept if _started(int(entry["pid"])) == entry["started"]]
            return [make(entry) for entry in living]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the roster %s cannot be used: %r", self._path, error)
            return []


def _entry(worker: LocalWorker) -> dict[str, Any]:
    pid = worker.connection.pid
    held = {name: json.loads(item.encode()) for name in ("agreed", "plan", "told") if (item := getattr(worker, name))}
    record = json.loads(worker.record().encode())
    about = {"pid": pid, "started": _started(pid), "member": record, "schema": worker.schema.document}
    return {**about, "epoch": worker.epoch, **held}


def _worker(entry: dict[str, Any], node: str, on_died: Callable[[Any], None]) -> LocalWorker:
    member = Member.model_validate({**entry["member"], "node": node, "version": VERSION})
    schema = Schema(entry["schema"])
    worker = LocalWorker(member, schema, Absentee(int(entry["pid"]), on_died), view=member.view, absent=True)
    worker.excused_until = time.monotonic()  # what passed while no agent looked counts as no worker's stall
    worker.epoch = int(entry.get("epoch", 0))
    worker.heard = member.head.told if member.head is not None else 0
    worker.agreed = Agreed.model_validate(entry["agreed"]) if "agreed" in entry else None
    worker.plan = Plan.model_validate(entry["plan"]) if "plan" in entry else None
    worker.told = Plan.model_validate(entry["told"]) if "told" in entry else None
    return worker


def _started(pid: int) -> int:
    """When the process began, in clock ticks since the machine did; 0 for none. A pid alone may be another's by now."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])
