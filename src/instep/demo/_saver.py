"""The demo's accident: the rank that is writing a checkpoint is killed, and what becomes of that checkpoint."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

from instep.coordination.keys import Keys
from instep.coordination.records import Leader, Manifest, Member, Pointer, Saving
from instep.demo._checks import Takeover
from instep.errors import InstepError
from instep.etcd import Client, Event, WatchBatch

T = TypeVar("T")

PATIENCE_S: Final = 30.0


async def pids(client: Client, keys: Keys) -> dict[int, int]:
    """By rank, the processes that train now."""
    found = (Member.decode_or_none(item.value) for item in (await client.range(keys.members)).kvs)
    return {member.rank: member.pid for member in found if member is not None}


async def kill_saver(
    client: Client, keys: Keys, ours: Callable[[], list[int]], told: Callable[[str], None]
) -> Takeover:
    """Waits for the next checkpoint to be begun, kills who writes it, and waits until it is committed all the same.

    `ours` are the processes that may be killed. Raises InstepError when that does not happen in 30 s.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await _kill_saver(client, keys, ours, told)
    except TimeoutError:
        raise InstepError(f"no checkpoint was saved in {PATIENCE_S:.0f} s after its saver was killed") from None


async def _kill_saver(
    client: Client, keys: Keys, ours: Callable[[], list[int]], told: Callable[[str], None]
) -> Takeover:
    by_rank = await pids(client, keys)
    revision = (await client.range(keys.state, limit=1)).revision
    async with client.watch(keys.state, start_revision=revision + 1) as watch:
        events = _events(watch)
        saving = await _first(events, lambda event: _saving(keys, event))
        dead, pid = saving.rank, by_rank[saving.rank]
        if pid not in ours():
            raise InstepError(f"rank {dead} is pid {pid}, which is none of the demo's processes")
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        told(f"kill -9 {pid}  # rank {dead}, in the middle of saving step {saving.step}")
        leader = await _first(events, lambda event: _leader(keys, event, dead))
        took_ms = (time.monotonic() - killed_at) * 1000
        saved = await _first(events, lambda event: _saved(keys, event, saving.step))
    item = await client.get(keys.checkpoint(saved.id))
    manifest = Manifest.decode_or_none(item.value if item is not None else None)
    if manifest is None:
        raise InstepError(f"checkpoint {saved.id} is in no registry")
    return Takeover(saving.step, dead, leader.rank, took_ms, manifest.rank)


async def _first(events: AsyncIterator[Event], read: Callable[[Event], T | None]) -> T:
    """What is read from the next event that says it."""
    async for event in events:
        if (found := read(event)) is not None:
            return found
    raise InstepError("the watch has ended")


async def _events(watch: AsyncIterator[WatchBatch]) -> AsyncIterator[Event]:
    async for batch in watch:
        for event in batch.events:
            yield event


def _saving(keys: Keys, event: Event) -> Saving | None:
    return Saving.decode_or_none(event.kv.value) if event.kind == "put" and event.kv.key == keys.saving else None


def _leader(keys: Keys, event: Event, dead: int) -> Leader | None:
    leader = Leader.decode_or_none(event.kv.value) if event.kind == "put" and event.kv.key == keys.leader else None
    return leader if leader is not None and leader.rank != dead else None


def _saved(keys: Keys, event: Event, step: int) -> Pointer | None:
    saved = Pointer.decode_or_none(event.kv.value) if event.kind == "put" and event.kv.key == keys.saved else None
    return saved if saved is not None and saved.step == step else None
