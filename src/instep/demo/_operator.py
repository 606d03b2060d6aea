"""What the demo's operator does to the run: the same calls that `instep set --wait` makes, and one etcdctl put."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass

from instep.control import (
    ChangeReceipt,
    CommandReceipt,
    Facts,
    Keys,
    Sent,
    ValueChange,
    Written,
    get,
    send,
    set_values,
    wait,
)
from instep.coordination.records import CommandKind
from instep.errors import ConfigError, InstepError
from instep.etcd import Client
from instep.scalar import parse_scalar
from instep.testing import EtcdServer

AUTHOR = "operator@demo"
RECEIPT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Refusal(Facts):
    """A value that does not validate: what was said, and what etcd held before and after."""

    asked: str
    reason: str
    before: str
    after: str
    written: bool


class Operator:
    """One person at the terminal, for one run."""

    def __init__(self, client: Client, keys: Keys, server: EtcdServer) -> None:
        self._client = client
        self._keys = keys
        self._server = server

    @property
    def keys(self) -> Keys:
        return self._keys

    def order_command(self, kind: str, *options: str) -> str:
        """The command that `order` amounts to."""
        return " ".join(["instep", kind, self._keys.run, *options])

    def command(self, values: Mapping[str, str], reason: str | None) -> str:
        """The command that `change` amounts to."""
        words = ["instep", "set", self._keys.run, *(f"{name}={value}" for name, value in values.items())]
        return shlex.join(words) + (f' --why "{reason}" --wait' if reason else "")

    async def change(self, values: Mapping[str, str], reason: str) -> ChangeReceipt:
        """Raises ConfigError, ChangeRejected, ReceiptTimeout as `instep set --wait` does."""
        written = await set_values(self._client, self._keys, values, author=AUTHOR, reason=reason)
        return await wait(self._client, self._keys, written, RECEIPT_TIMEOUT_S)

    async def try_bad(self, name: str, value: str) -> Refusal:
        """Ask for a value that must be refused."""
        key = self._keys.config_of(name)
        before = await self._holds(key)
        try:
            await set_values(self._client, self._keys, {name: value}, author=AUTHOR)
            reason = "it was not refused"
        except ConfigError as error:
            reason = str(error)
        after = await self._holds(key)
        return Refusal(f"{name}={value}", reason, before[1], after[1], written=before != after)

    async def send(self, kind: CommandKind, reason: str | None = None) -> Sent:
        """Raises CommandRefused, and what else `instep pause` and its like do."""
        return await send(self._client, self._keys, kind, author=AUTHOR, reason=reason)

    async def order(self, kind: CommandKind, reason: str | None = None) -> CommandReceipt:
        """A command, followed to its receipt. Raises ReceiptTimeout too."""
        return await wait(self._client, self._keys, await self.send(kind, reason), RECEIPT_TIMEOUT_S)

    @property
    def has_etcdctl(self) -> bool:
        return self._server.binary.etcdctl is not None

    def put_command(self, name: str, value: str) -> str:
        return f"etcdctl put {self._keys.config_of(name)} {value}"

    async def put(self, name: str, value: str) -> ChangeReceipt:
        """Past Instep's own front ends: a plain put, by etcdctl. The receipt is the same."""
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
