"""Finds the checkpoints of a run on disk, for an etcd that has lost its records of them.

The list of files in each directory identifies its checkpoint, so the record can be rebuilt from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from instep.wire.documents import Manifest
from instep.worker.manifest import COMMITTED, MANIFEST, Listed, Owners, verified
from instep.worker.slot import place_of


@dataclass(frozen=True, slots=True)
class Found:
    """A directory with a list of files. If it cannot be used, `record` is None and `problem` says why.
    `is_committed`: etcd has confirmed the commit to its saver."""

    path: Path
    step: int
    token: int
    is_committed: bool
    record: Manifest | None
    problem: str | None

    @property
    def id(self) -> str:
        return f"{self.step}-{self.token}"

    @property
    def age(self) -> tuple[int, int]:
        """Orders checkpoints by their commits."""
        return self.token, self.step


def find_checkpoints(
    folder: Path,
    run: str,
    namespace: str,
    owners: Owners,
    *,
    wanted: Callable[[int, int, bool], bool] = lambda step, token, is_committed: True,
) -> Iterator[Found]:
    """The checkpoints of the run directly below `folder`, the oldest first. `wanted` chooses by step, token and
    whether they are marked as committed. Checks that all files exist with their sizes; checksums are checked on
    load.

    Directories of other runs and namespaces are skipped without a message. Raises OSError for a folder that cannot
    be read.
    """
    placed = []
    with os.scandir(folder) as entries:
        for entry in entries:
            place = place_of(entry.name)
            if place is not None and entry.is_dir(follow_symlinks=False):
                placed.append((place[1], place[0], entry.name))
    for token, step, name in sorted(placed):
        path = folder / name
        is_committed = os.path.lexists(path / COMMITTED)
        if not os.path.lexists(path / MANIFEST) or not wanted(step, token, is_committed):
            continue
        listed = verified(path, None, owners, sums=False)
        if isinstance(listed, str):
            yield Found(path, step, token, is_committed, None, listed)
            continue
        about = listed.about
        if not about:
            problem = "it was saved by a version of Instep that did not record which checkpoint it is"
            yield Found(path, step, token, is_committed, None, problem)
        elif (about.get("run"), about.get("namespace")) == (run, namespace):
            if (about.get("step"), about.get("token")) == (step, token):
                record = _record_of(path, listed)
                found = (record, None) if isinstance(record, Manifest) else (None, record)
                yield Found(path, step, token, is_committed, *found)
            else:
                yield Found(path, step, token, is_committed, None, "its directory was renamed")


def _record_of(path: Path, listed: Listed) -> Manifest | str:
    """The record for etcd, or the reason why the list cannot be used."""
    files = {"files": len(listed.files), "bytes": listed.bytes, "digest": listed.digest, "path": str(path)}
    try:
        return Manifest.decode(json.dumps({**listed.about, **files}))
    except ValueError as error:
        return f"its list of files is damaged: {error}"
