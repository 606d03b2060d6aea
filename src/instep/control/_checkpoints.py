"""The committed checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from instep.control._facts import Facts
from instep.control._load import load
from instep.control._picture import Picture, Saved
from instep.control._runs import require_run
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import FailedSave, Pointer
from instep.text import one_line


@dataclass(frozen=True, slots=True)
class Checkpoint(Facts):
    """One that is committed. `saved_by` is the rank, `token` its fencing token; `path` is as its host names it.

    `latest` marks the one that a restart goes on from, if its ranks find it good. `committed_at` is the wall clock of
    the saver's host, for people only.
    """

    id: str
    step: int
    path: str
    saved_by: int
    host: str
    node: str
    token: int
    committed_at: str
    duration_s: float
    bytes: int
    files: int
    layout: str
    world_size: int
    view: int
    latest: bool


@dataclass(frozen=True, slots=True)
class FailedSaveFacts(Facts):
    """A checkpoint that could not be saved, while training continued. `at` is the wall clock of the saver's host."""

    step: int
    rank: int
    host: str
    reason: str
    at: str | None


@dataclass(frozen=True, slots=True)
class Checkpoints(Facts):
    run: str
    revision: int
    checkpoints: tuple[Checkpoint, ...]
    """The one that a start resumes from first, then the newest commit."""


async def checkpoints(client: Client, keys: Keys) -> Checkpoints:
    """All that are committed and kept, at one revision. Raises RunNotFound."""
    picture = await load(client, keys, plans=1, receipts=0, checkpoints=True)
    if picture.empty:
        await require_run(client, keys)
    return Checkpoints(keys.run, picture.revision, checkpoints_of(picture.saved.values(), picture.latest))


def checkpoints_of(saved: Iterable[Saved], latest: Pointer | None) -> tuple[Checkpoint, ...]:
    newest = latest.id if latest is not None else ""

    def age(item: Saved) -> tuple[bool, int, int]:
        return item.manifest.id == newest, item.revision, item.manifest.step  # others may have been adopted since

    by_age = sorted(saved, key=age, reverse=True)
    return tuple(checkpoint_of(item, latest) for item in by_age)


def failed_save_of(failed: FailedSave | None) -> FailedSaveFacts | None:
    if failed is None:
        return None
    return FailedSaveFacts(failed.step, failed.rank, one_line(failed.host), one_line(failed.text), failed.at)


def newest_of(picture: Picture) -> Checkpoint | None:
    """The one that the pointer names."""
    saved = picture.saved.get(picture.latest.id) if picture.latest is not None else None
    return checkpoint_of(saved, picture.latest) if saved is not None else None


def checkpoint_of(saved: Saved, latest: Pointer | None) -> Checkpoint:
    manifest = saved.manifest
    return Checkpoint(
        id=manifest.id,
        step=manifest.step,
        path=manifest.path,
        saved_by=manifest.rank,
        host=manifest.host,
        node=manifest.node,
        token=manifest.token,
        committed_at=manifest.committed_at,
        duration_s=manifest.duration_s,
        bytes=manifest.bytes,
        files=manifest.files,
        layout=manifest.layout,
        world_size=manifest.world_size,
        view=manifest.view,
        latest=latest is not None and latest.id == manifest.id,
    )
