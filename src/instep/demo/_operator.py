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
from instep.demo._environment import Sandbox
from instep.errors import ConfigError, InstepError
from instep.etcd import Client, Event, WatchBatch
from instep.protocol.records import CommandName, Leader, Manifest, Member, Pointer, Saving
from instep.scalar import parse_scalar

AUTHOR = "operator@demo"
RECEIPT_TIMEOUT_S = 60.0

R = TypeVar("R")
PATIENCE_S: Final = 30.0


class DemoOperator:
    """The operator of one run."""

    def __init__(self, client: Client, keys: Keys, sandbox: Sandbox) -> None:
        self.keys = keys
        self._client = client
        self._sandbox = sandbox

    def order_command(self, kind: str, *options: str) -> str:
        """The command line equivalent to `order`."""
        return " ".join(["instep", kind, self.keys.run, *options])

    def command(self, values: Mapping[str, str], reason: str | None) -> str:
        """The command line equivalent to `change`."""
        words = ["instep", "set", self.keys.run, *(f"{name}={value}" for name, value in values.items())]
        return shlex.join(words) + (f' --why "{reason}" --wait' if reason else "")

    async def change(self, values: Mapping[str, str], reason: str) -> ChangeReceipt:
        """Raises ConfigError, ChangeRejected, ReceiptTimeout as `instep set --wait` does."""
        written = await set_values(self._client, self.keys, values, author=AUTHOR, reason=reason)
        return await wait(self._client, self.keys, written, RECEIPT_TIMEOUT_S)

    async def try_bad(self, name: str, value: str) -> RefusedValue:
        """Tries to set a value that must be refused."""
        key = self.keys.config_of(name)
        before = await self._holds(key)
        try:
            await set_values(self._client, self.keys, {name: value}, author=AUTHOR)
            reason = "it was not refused"
        except ConfigError as error:
            reason = str(error)
        after = await self._holds(key)
        return RefusedValue(f"{name}={value}", reason, before[1], after[1], written=before != after)

    async def send(self, kind: CommandName, reason: str | None = None) -> Sent:
        """Sends a command without waiting. Raises CommandRefused."""
        return await send(self._client, self.keys, kind, author=AUTHOR, reason=reason)

    async def order(self, kind: CommandName, reason: str | None = None) -> CommandReceipt:
        """Sends a command and waits for its receipt. Raises CommandRefused and ReceiptTimeout."""
        return await wait(self._client, self.keys, await self.send(kind, reason), RECEIPT_TIMEOUT_S)

    def put_command(self, name: str, value: str) -> str:
        return f"etcdctl put {self.keys.config_of(name)} {value}"

    async def put(self, name: str, value: str) -> ChangeReceipt:
        """Bypasses Instep's front ends with a plain etcdctl put. The receipt is the same."""
        before = next(iter((await get(self._client, self.keys, name)).values)).agreed
        asked_at_s = time.monotonic()
        arguments = ("put", self.keys.config_of(name), value, "--write-out=json")
        answer = await asyncio.to_thread(self._sandbox.etcdctl, *arguments)
        try:
            revision = int(json.loads(answer)["header"]["revision"])
        except (ValueError, KeyError, TypeError):
            raise InstepError(f"etcdctl put answered {answer[:200]!r}, which names no revision") from None
        written = Written(
            run=self.keys.run,
            revision=revision,
            change_id="",
            author="",
            reason=None,
            changes=(ValueChange(name, before, parse_scalar(value)),),
            already_agreed=False,
            live=True,
            asked_at_s=asked_at_s,
        )
        return await wait(self._client, self.keys, written, RECEIPT_TIMEOUT_S)

    async def _holds(self, key: str) -> tuple[int, str]:
        found = await self._client.get(key)
        return (found.mod_revision, found.text) if found else (0, "")

    async def pids(self) -> dict[int, int]:
        """The pids of the training processes, by rank."""
        found = (Member.decode_or_none(item.value) for item in (await self._client.range(self.keys.members)).kvs)
        return {member.rank: member.pid for member in found if member is not None}

    def check_pid(self, rank: int, pid: int) -> None:
        """Raises InstepError if it is none of the demo's processes, which alone may be killed."""
        if pid not in self._sandbox.processes():
            raise InstepError(f"rank {rank} is pid {pid}, which is none of the demo's processes")

    async def kill_saver(self, told: Callable[[str], None]) -> Takeover:
        """Waits for the next save, kills the rank that writes it, and waits until another rank has committed it.

        Raises InstepError after 30 s.
        """
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._kill_saver(told)
        except TimeoutError:
            raise InstepError(f"no checkpoint was saved in {PATIENCE_S:.0f} s after its saver was killed") from None

    async def _kill_saver(self, told: Callable[[str], None]) -> Takeover:
        client, keys = self._client, self.keys
        by_rank = await self.pids()
        revision = (await client.range(keys.state, limit=1)).revision
        async with client.watch(keys.state, start_revision=revision + 1) as watch:
            events = _events(watch)
            saving = await _first(events, keys.saving, Saving.decode_or_none, lambda saving: True)
            dead, pid = saving.rank, by_rank[saving.rank]
            self.check_pid(dead, pid)
            os.kill(pid, signal.SIGKILL)
            killed_at = time.monotonic()
            told(f"kill -9 {pid}  # rank {dead}, in the middle of saving step {saving.step}")
            leader = await _first(events, keys.leader, Leader.decode_or_none, lambda leader: leader.rank != dead)
            took_ms = (time.monotonic() - killed_at) * 1000
            saved = await _first(events, keys.saved, Pointer.decode_or_none, lambda saved: saved.step == saving.step)
        item = await client.get(keys.checkpoint(saved.id))
        manifest = Manifest.decode_or_none(item.value if item is not None else None)
        if manifest is None:
            raise InstepError(f"checkpoint {saved.id} is not in the registry")
        return Takeover(saving.step, dead, leader.rank, took_ms, manifest.rank)


async def _events(watch: AsyncIterator[WatchBatch]) -> AsyncIterator[Event]:
    async for batch in watch:
        for event in batch.events:
            yield event


async def _first(
    events: AsyncIterator[Event], key: str, decode: Callable[[bytes], R | None], fits: Callable[[R], bool]
) -> R:
    """The first record put to `key` that fits."""
    async for event in events:
        record = decode(event.kv.value) if event.kind == "put" and event.kv.key == key else None
        if record is not None and fits(record):
            return record
    raise InstepError("the watch has ended")
