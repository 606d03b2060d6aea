"""A checkpoint that is being written: a directory of its own, which does not count until it is committed."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol

from instep.errors import CheckpointError, Fenced, StepError
from instep.scalar import Scalar
from instep.wire.codec import to_json
from instep.wire.documents import Manifest
from instep.wire.messages import CommitCheckpoint
from instep.worker.gate import NEVER
from instep.worker.manifest import FileSum, Sums, mark_committed, write_manifest

Layout = Literal["plain", "sharded", "custom"]

_DIRECTORY: Final = re.compile(r"step-([0-9]{1,19})-([0-9]{1,19})(?:\.[0-9]{1,9})?", re.ASCII)
MAX_ATTEMPTS: Final = 1000
"""Upper bound for existing directories of one step and token."""
_CURES: Final = {
    errno.ENOSPC: "free space there, or keep fewer checkpoints",
    errno.EDQUOT: "raise the quota, or keep fewer checkpoints",
    errno.EROFS: "the file system is mounted read-only: give a folder that can be written",
    errno.EACCES: "give a folder that this user can write",
    errno.EPERM: "give a folder that this user can write",
    errno.ENOTDIR: "a part of the path is a file: give another folder",
    errno.EEXIST: "there is a file of that name: give another folder",
    errno.EIO: "look at the disk or the network file system",
    errno.ESTALE: "look at the network file system",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saver:
    """The saver, and the values at the saved step."""

    run: str
    namespace: str
    rank: int
    world_size: int
    view: int
    token: int
    candidate: str
    config: Mapping[str, Scalar]
    plan: int
    lineage: tuple[str, ...] = ()
    """Ids of the checkpoints that the training resumed from, as far as this worker knows, the newest first."""


class CommitSink(Protocol):
    """Commits slots."""

    def commit(self, message: CommitCheckpoint) -> bool:
        """True if it is committed, False if that is not known yet. Raises Fenced."""

    def give_up(self, checkpoint_id: str) -> None: ...

    def note_failed(self, step: int, text: str) -> None: ...


class Slot:
    """Write into `path`, then `commit`. Promise: only a committed checkpoint is resumed from; `commit` raises Fenced
    once another rank leads. Limit: the directory's files must not change after `commit` or `seal`.

    `token` is the saver's fencing token and `id` the checkpoint's name in the registry. Use it in the training
    thread; only `seal` may run in another one.
    """

    def __init__(self, step: int, path: Path, layout: Layout, saver: Saver, sink: CommitSink) -> None:
        self.step = step
        self.path = path
        self.layout = layout
        self._saver = saver
        self._sink = sink
        self._began = time.monotonic()
        self._sums: Sums | None = None
        self._sealed_at = ""
        self._said: CommitCheckpoint | None = None
        self._state: Literal["open", "sent", "committed", "fenced", "abandoned"] = "open"

    def __repr__(self) -> str:
        return f"Slot({self.id}, {self.path}, {self._state})"

    @property
    def id(self) -> str:
        return f"{self.step}-{self.token}"

    @property
    def token(self) -> int:
        return self._saver.token

    @property
    def state(self) -> str:
        return self._state

    def seal(self, known: Mapping[str, FileSum] | None = None) -> None:
        """Lists the files with their checksums and syncs them to disk: the part of `commit` that reads all files,
        except those whose checksums are `known` by name. Raises CheckpointError."""
        try:
            self._sealed_at = datetime.now(UTC).isoformat(timespec="milliseconds")
            place = {"run": self._saver.run, "namespace": self._saver.namespace}
            known_later = ("files", "bytes", "digest", "node")
            manifest = to_json(self._manifest(Sums(0, 0, ""), self._sealed_at, self.path.name))
            about = {name: value for name, value in manifest.items() if name not in known_later}
            self._sums = write_manifest(self.path, known, {**place, **about})
        except OSError as error:
            raise write_error(self.step, self.path, error) from error

    def commit(self) -> bool:
        """Makes it the run's newest checkpoint. True if etcd has confirmed that; False if etcd does not answer in 5
        s: the node's agent retries and logs the outcome, and another call of `commit` returns it.

        Raises Fenced (another rank leads: it will never be committed) and CheckpointError (a file cannot be read or
        written).
        """
        if self._state == "committed":
            return True
        if self._state == "abandoned":
            raise CheckpointError(f"the checkpoint of step {self.step} was abandoned: open another slot")
        if self._sums is None:
            try:
                self.seal()
            except CheckpointError:
                self.abandon()
                raise
        assert self._sums is not None
        self._state = "sent"
        try:
            if self._said is None:
                now = datetime.now(UTC).isoformat(timespec="milliseconds")
                self._said = CommitCheckpoint(self._saver.candidate, self._manifest(self._sums, now, str(self.path)))
            committed = self._sink.commit(self._said)
        except Fenced:
            self._state = "fenced"
            raise
        if committed:
            self._state = "committed"
            mark_committed(self.path)
        return committed

    def note_failed(self, error: Exception) -> None:
        """Reports to operators why there is no checkpoint of this step."""
        self._sink.note_failed(self.step, str(error))

    def abandon(self) -> None:
        """Abandons the attempt and removes its directory; does nothing after `commit`."""
        if self._state != "open":
            return
        self._state = "abandoned"
        self._sink.give_up(self.id)
        import shutil  # imported when needed: the trainer pays for each import

        shutil.rmtree(self.path, ignore_errors=True)

    def _manifest(self, sums: Sums, at: str, path: str) -> Manifest:
        saver = self._saver
        return Manifest(
            id=self.id,
            step=self.step,
            token=self.token,
            path=path,
            layout=self.layout,
            files=sums.files,
            bytes=sums.bytes,
            digest=sums.digest,
            view=saver.view,
            world_size=saver.world_size,
            config=saver.config,
            plan=saver.plan,
            rank=saver.rank,
            host=socket.gethostname()[:64],
            duration_s=round(time.monotonic() - self._began, 6),
            lineage=saver.lineage,
            committed_at=at,
        )


def place_of(name: str) -> tuple[int, int] | None:
    """Step and token of the checkpoint in a directory of that name; None for other names."""
    match = _DIRECTORY.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def make_directory(folder: str | os.PathLike[str], step: int, token: int) -> Path:
    """Creates a directory for an attempt at `step`, below `folder`, which is created if it is missing. Raises
    CheckpointError."""
    parent = Path(folder).expanduser().absolute()
    try:
        str(parent).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"the folder {str(parent)!r} has a name that is not valid text: give another folder"
        ) from None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            path = parent / (f"step-{step}-{token}" if attempt == 1 else f"step-{step}-{token}.{attempt}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise write_error(step, parent, error) from error
    raise CheckpointError(f"{parent} holds {MAX_ATTEMPTS} attempts at step {step}: clean it up")


def write_error(step: int, path: Path, error: OSError) -> CheckpointError:
    """The error to raise if the file system refuses something."""
    where = error.filename if isinstance(error.filename, str) else path
    reason = error.strerror or str(error)
    cure = _CURES.get(error.errno or 0, "look at the folder and its file system")
    return CheckpointError(f"the checkpoint of step {step} cannot be written: {where}: {reason}; {cure}")


def step_index(step: object) -> int:
    """Raises StepError for what is no step."""
    try:
        number = operator.index(step)  # type: ignore[arg-type]  # that is what is tried
    except TypeError:
        raise StepError(f"a step is a whole number, not {step!r}") from None
    if not 0 <= number < NEVER:
        raise StepError(f"step {number} is out of range: steps are counted from 0 to {NEVER - 1}")
    return number
