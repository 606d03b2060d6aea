"""Which checkpoints to keep, and which directories can never be loaded. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from instep.worker.slot import place_of


@dataclass(frozen=True, slots=True)
class CommittedCheckpoint:
    """A committed checkpoint. `lineage`: the checkpoints that its training resumed from, newest first. `is_own`: saved
    since the run last started."""

    id: str
    step: int
    lineage: tuple[str, ...] = ()
    is_own: bool = True


@dataclass(frozen=True, slots=True)
class SlotDirectory:
    """A directory of this run. `whole`: its manifest is written, so it may be committed. `committed`: it is marked as
    committed."""

    name: str
    step: int
    token: int
    whole: bool
    committed: bool = False

    @property
    def id(self) -> str:
        return f"{self.step}-{self.token}"


def slot_directory_named(name: str, *, whole: bool, committed: bool = False) -> SlotDirectory | None:
    """The directory with this name; None if it is not the name of a slot."""
    place = place_of(name)
    return SlotDirectory(name, *place, whole, committed) if place is not None else None


def to_forget(
    committed: Sequence[CommittedCheckpoint], keep: int, keep_every: int, newest: str | None = None
) -> tuple[str, ...]:
    """Ids beyond the last `keep`, except milestones. `committed` is sorted from newest to oldest.

    The last ones are `newest`, from which a start would resume, and its lineage; then those that were left behind when
    the run went back to an older checkpoint. Never a checkpoint of an earlier start with more steps than `newest`,
    because this training does not descend from it.
    """
    line = _line_of(newest, committed)
    last = {item.id for item in sorted(committed, key=lambda item: line.get(item.id, len(line)))[:keep]}
    reached = max((item.step for item in committed if item.id == newest), default=None)
    return tuple(
        item.id
        for item in committed
        if item.id not in last
        and not (keep_every and _is_milestone(item, committed, keep_every))
        and not (reached is not None and item.step > reached and not item.is_own)
    )


def _is_milestone(item: CommittedCheckpoint, committed: Sequence[CommittedCheckpoint], keep_every: int) -> bool:
    """Whether it is the first checkpoint of its training after each `keep_every` steps. It works for loops that save
    where `(step + 1) % n == 0`, or `step % n == 0`, or irregularly."""
    parent = slot_directory_named(f"step-{item.lineage[0]}", whole=True) if item.lineage else None
    older = [other.step for other in committed if other.step < item.step]
    before = parent.step if parent is not None else max(older, default=-1)
    return (item.step + 1) // keep_every > (before + 1) // keep_every


def _line_of(newest: str | None, committed: Sequence[CommittedCheckpoint]) -> dict[str, int]:
    """By id, the positions of `newest` and its ancestors. A lineage is limited in length; the oldest one's continues
    it."""
    known = {item.id: item for item in committed}
    line = [newest] if newest in known else [item.id for item in committed[:1]]
    seen = set(line)
    for checkpoint_id in line:
        ancestors = [item for item in known[checkpoint_id].lineage if item in known and item not in seen]
        line += ancestors
        seen.update(ancestors)
    return {checkpoint_id: place for place, checkpoint_id in enumerate(line)}


def to_delete(
    attempts: Iterable[SlotDirectory],
    *,
    committed: Collection[str],
    unlisted: Collection[str],
    pending: Collection[str],
    known: Collection[tuple[int, int]],
    before: Collection[str],
    token: int,
) -> tuple[str, ...]:
    """Names of the directories that will never be committed. `token` is the token of this process, the leader.

    A directory without a manifest and with a lower token: its saver was replaced before it finished. A complete one may
    be a good checkpoint that this etcd does not know, so it is deleted only if its step and token are `known`, of a
    save since this process joined, and its name is not in `before`, the directories at that time: a new etcd may issue
    the same tokens again. Names in `committed` are in the registry, those in `pending` may be added to it, and for ids
    in `unlisted` the name in the registry is not known.
    """
    return tuple(
        item.name
        for item in attempts
        if not item.committed
        and item.name not in committed
        and item.name not in pending
        and item.id not in unlisted
        and item.token <= token
        and (
            ((item.step, item.token) in known and not (item.whole and item.name in before))
            or (not item.whole and item.token < token)
        )
    )
