"""What the demo's operator does: the calls that `instep set --wait` makes, one etcdctl put, and killing a saver."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, TypeVar

from instep.control import (
    ChangeReceipt,
    CommandReceipt,
    Keys,
    Sent,
    ValueChange,
    Written,
    get,
    send,
    set_values,
    wait,
)
from instep.demo._checks import RefusedValue, Takeover
from instep.demo._environment import TemporaryEtcd
from instep.errors import ConfigError, InstepError
from instep.etcd import Client, Event, WatchBatch
from instep.protocol.records import CommandName, Leader, Manifest, Member, Pointer, Saving
from instep.scalar import parse_scalar

AUTHOR = "operator@demo"
RECEIPT_TIMEOUT_S = 60.0

T = TypeVar("T")
PATIENCE_S: Final = 30.0


class Operator:
    """The operator of one run."""

    def __init__(self, client: Client, keys: Keys, server: TemporaryEtcd) -> None:
        self._client = client
        self._keys = keys
        self._server = server

    @property
    def keys(self) -> Keys:
        return self._keys

    def order_command(self, kind: str, *options: str) -> str:
        """The command line equivalent to `order`."""
        return " ".join(["instep", kind, self._keys.run, *options])

    def command(self, values: Mapping[str, str], reason: str | None) -> str:
        """The command line equivalent to `change`."""
        words = ["instep", "set", self._keys.run, *(f"{name}={value}" for name, value in values.items())]
        return shlex.join(words) + (f' --why "{reason}" --wait' if reason else "")

    async def change(self, values: Mapping[str, str], reason: str) -> ChangeReceipt:
        """Raises ConfigError, ChangeRejected, ReceiptTimeout as `instep set --wait` does."""
        written = await set_values(self._client, self._keys, values, author=AUTHOR, reason=reason)
        return await wait(self._client, self._keys, written, RECEIPT_TIMEOUT_S)

    async def try_bad(self, name: str, value: str) -> RefusedValue:
        """Tries to set a value that must be refused."""
        key = self._keys.config_of(name)
        before = await self._holds(key)
        try:
            await set_values(self._client, self._keys, {name: value}, author=AUTHOR)
            reason = "it was not refused"
        except ConfigError as error:
            reason = str(error)
        after = await self._holds(key)
        return RefusedValue(f"{name}={value}", reason, before[1], after[1], written=before != after)

    async def send(self, kind: CommandName, reason: str | None = None) -> Sent:
        """Sends a command without waiting. Raises CommandRefused."""
        return await send(self._client, self._keys, kind, author=AUTHOR, reason=reason)

    async def order(self, kind: CommandName, reason: str | None = None) -> CommandReceipt:
        """Sends a command and waits for its receipt. Raises CommandRefused and ReceiptTimeout."""
        return await wait(self._client, self._keys, await self.send(kind, reason), RECEIPT_TIMEOUT_S)

    @property
    def has_etcdctl(self) -> bool:
        return self._server.has_etcdctl

    def put_command(self, name: str, value: str) -> str:
        return f"etcdctl put {self._keys.config_of(name)} {value}"

    async def put(self, name: str, value: str) -> ChangeReceipt:
        """Bypasses Instep's front ends with a plain etcdctl put. The receipt is the same."""
        before = next(iter((await get(self._client, self._keys, name)).values)).agreed
        asked_at_s = time.monotonic()
        arguments = ("put", self._keys.config_of(name), value, "--write-out=json")
        answer = await asyncio.to_thread(self._server.etcdctl, *arguments)
        try:
            revision = int(json.loads(answer)["header"]["revision"])
        except (ValueError, KeyError, TypeError):
            raise InstepError(f"etcdctl put answered {answer[:200]!r}, which names no revision") from None
        written = Written(
            run=self._keys.run,
            revision=revision,
            change_id="",
            author="",
            reason=None,
            changes=(ValueChange(name, before, parse_scalar(value)),),
            already_agreed=False,
            live=True,
            asked_at_s=asked_at_s,
        )
        return await wait(self._client, self._keys, written, RECEIPT_TIMEOUT_S)

    async def _holds(self, key: str) -> tuple[int, str]:
        found = await self._client.get(key)
        return (found.mod_revision, found.text) if found else (0, "")


async def pids(client: Client, keys: Keys) -> dict[int, int]:
    """The pids of the training processes, by rank."""
    found = (Member.decode_or_none(item.value) for item in (await client.range(keys.members)).kvs)
    return {member.rank: member.pid for member in found if member is not None}


async def kill_saver(
    client: Client, keys: Keys, ours: Callable[[], list[int]], told: Callable[[str], None]
) -> Takeover:
    """Waits for the next save, kills the rank that writes it, and waits until another rank has committed it.

    `ours` returns the processes that may be killed. Raises InstepError after 30 s.
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
        raise InstepError(f"checkpoint {saved.id} is not in the registry")
    return Takeover(saving.step, dead, leader.rank, took_ms, manifest.rank)


async def _first(events: AsyncIterator[Event], read: Callable[[Event], T | None]) -> T:
    """The first result of `read` over the events that is not None."""
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
