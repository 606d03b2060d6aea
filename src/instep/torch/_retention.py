"""Which checkpoints are kept, and which directories hold nothing that anybody will ever load. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_ATTEMPT: Final = re.compile(r"step-([0-9]{1,19})-([0-9]{1,19})(?:\.[0-9]{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kept:
    """A committed checkpoint as retention sees it."""

    id: str
    step: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """A directory that a Checkpointer of this run has made. `whole`: its manifest is written, it may be committed."""

    name: str
    step: int
    token: int
    whole: bool


def attempt_named(name: str, *, whole: bool) -> Attempt | None:
    """None for a name that no attempt has."""
    match = _ATTEMPT.fullmatch(name)
    return Attempt(name, int(match[1]), int(match[2]), whole) if match else None


def to_forget(committed: Sequence[Kept], keep: int, keep_every: int) -> tuple[str, ...]:
    """Ids beyond the last `keep`, of `committed` from the newest to the oldest, but for every `keep_every`th step."""
    return tuple(item.id for item in committed[keep:] if not keep_every or item.step % keep_every)


def to_delete(
    attempts: Iterable[Attempt],
    *,
    committed: Collection[str],
    pending: Collection[str],
    known: Collection[tuple[int, int]],
    token: int,
) -> tuple[str, ...]:
    """Names of the directories that will never be committed. `token` is that of the leader who asks, this process.

    One without a manifest, of a lower token: its saver was replaced before it was done. One that is whole may be
    somebody's good checkpoint that this etcd has never heard of, so it goes only when its step and token are `known`:
    of a save since this process joined. Names in `committed` are in the registry, those in `pending` may come into it.
    """
    return tuple(
        item.name
        for item in attempts
        if item.name not in committed
        and item.name not in pending
        and item.token <= token
        and ((item.step, item.token) in known or (not item.whole and item.token < token))
    )
