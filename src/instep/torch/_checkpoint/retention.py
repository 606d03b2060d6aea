"""Which checkpoints are kept, and which directories hold nothing that anybody will ever load. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from instep.worker.slot import place_of


@dataclass(frozen=True, slots=True)
class CommittedCheckpoint:
    """A committed checkpoint as retention sees it. `lineage`: what its training resumed from, the newest first.
    `is_own`: it was saved since the run last began, not by an earlier start of it."""

    id: str
    step: int
    lineage: tuple[str, ...] = ()
    is_own: bool = True


@dataclass(frozen=True, slots=True)
class SlotDirectory:
    """A directory that a Checkpointer of this run has made. `whole`: its manifest is written, it may be committed.
    `committed`: it is marked as such."""

    name: str
    step: int
    token: int
    whole: bool
    committed: bool = False

    @property
    def id(self) -> str:
        return f"{self.step}-{self.token}"


def slot_directory_named(name: str, *, whole: bool, committed: bool = False) -> SlotDirectory | None:
    """None for a name that no attempt has."""
    place = place_of(name)
    return SlotDirectory(name, *place, whole, committed) if place is not None else None


def to_forget(
    committed: Sequence[CommittedCheckpoint], keep: int, keep_every: int, newest: str | None = None
) -> tuple[str, ...]:
    """Ids beyond the last `keep`, but for the milestones. `committed` goes from the newest to the oldest.

    The last are `newest`, which a start goes on from, and what it went on from itself; only then what was left behind
    when the run was taken back. Never one of an earlier start that holds more steps than `newest`: this training does
    not stem from it.
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
    """Whether it is the first of its training with `keep_every` more steps done: one for each `keep_every` steps of a
    loop that saves where `(step + 1) % n == 0`, or `step % n == 0`, or irregularly."""
    parent = slot_directory_named(f"step-{item.lineage[0]}", whole=True) if item.lineage else None
    older = [other.step for other in committed if other.step < item.step]
    before = parent.step if parent is not None else max(older, default=-1)
    return (item.step + 1) // keep_every > (before + 1) // keep_every


def _line_of(newest: str | None, committed: Sequence[CommittedCheckpoint]) -> dict[str, int]:
    """Places by id, of `newest` and its ancestors; a lineage ends after some of them, the oldest one's leads on."""
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
    """Names of the directories that will never be committed. `token` is that of the leader who asks, this process.

    One without a manifest, of a lower token: its saver was replaced before it was done. One that is whole may be
    somebody's good checkpoint that this etcd has never heard of, so it goes only when its step and token are `known`:
    of a save since this process joined, and its name not in `before`, there by then: a new etcd may give tokens that
    were given already. Names in `committed` are in the registry, those in `pending` may come into it, and of the ids in
    `unlisted` it is not known under which name they are in it.
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
