"""The operator: continuous changes of the run's hyperparameters and commands, drawn from the seed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from chaos.timed_calls import TimedCalls
from chaos.trainer import ACTION
from instep.errors import EtcdError
from instep.etcd import Client, Op
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed, Command, Directive
from instep.scalar import Scalar

RUN: Final = "chaos"
TIMEOUT_S = 2.0
RETRY_S = 0.3
NAMES = ("lr", "clip", "batch_size", "name")
FINAL: Mapping[str, Scalar] = {"lr": 0.123456, "clip": 7.654321, "batch_size": 77, "name": "final"}
"""The final values: all ranks must hold exactly these at the end."""
COMMANDS = 0.12
"""The share of requests that are commands. There is no stop, which would end the session."""
KINDS = ("pause",) * 3 + ("checkpoint",) * 4 + ("action",) * 3 + ("unknown action",)
UNKNOWN_ACTION = "nobody-declares-this"
MOST_STANDING = 3
PAUSE_S = (0.2, 1.0)
LOOK_S = 1.0
"""How often the operator checks whether the run is paused."""


class Operator:
    """Puts desired values and commands into etcd as a front end does; the history shows their outcome afterwards.
    `journal` gets a line for each command, before it is put: when that began.

    It requests the end of a pause until the run is resumed, because a fresh start drops commands and keeps a pause.
    """

    def __init__(self, client: Client, keys: Keys, calls: TimedCalls, seed: int, journal: Path) -> None:
        self.puts = 0
        self.failures = 0
        self.commands = 0
        self._client = client
        self._keys = keys
        self._calls = calls
        self._chance = random.Random(seed)
        self._journal = journal
        self._bag: list[str] = []
        self._resume_at = time.monotonic()

    def __repr__(self) -> str:
        return f"Operator(puts={self.puts}, commands={self.commands}, failures={self.failures})"

    async def run(self) -> None:
        """Requests something every 0.1 to 0.6 s, until cancelled."""
        while True:
            if time.monotonic() >= self._resume_at:
                self._resume_at = time.monotonic() + LOOK_S  # a put with an unknown outcome may arrive late
                await self.end_pause()
            wish = self._next()
            await (self._command_unless_many(wish) if isinstance(wish, Command) else self._put(wish))
            await asyncio.sleep(self._chance.uniform(0.1, 0.6))

    async def settle(self) -> None:
        """Requests the final values until etcd has them, and the end of any pause."""
        while not await self._put(FINAL):  # noqa: ASYNC110  # not an event: it is tried again
            await asyncio.sleep(RETRY_S)
        await self.end_pause()

    async def insist(self) -> None:
        """Requests the final values again if others are desired: an earlier put with an unknown outcome may have
        arrived late. Ends a pause too."""
        try:
            found = await self._calls.timed(
                "operator range", TIMEOUT_S, self._client.range(self._keys.config, timeout_s=TIMEOUT_S)
            )
        except EtcdError:
            return
        desired = {kv.key.removeprefix(self._keys.config): kv.text for kv in found.kvs}
        if desired != {name: json.dumps(value) for name, value in FINAL.items()}:
            await self._put(FINAL)
        await self.end_pause()

    async def end_pause(self) -> None:
        """Requests the end of a pause if the run is or will be paused, unless that was already requested."""
        try:
            pending = await self.pending()
            directive = await self._directive()
        except EtcdError:
            return
        kinds = [command.kind for command in pending.values()]
        if "resume" in kinds:
            return
        if directive.paused_at is not None or "pause" in kinds:
            await self._command(Command(kind="resume"))

    async def pending(self) -> dict[str, Command]:
        """The commands that wait to be carried out, by id."""
        found = await self._calls.timed(
            "operator range", TIMEOUT_S, self._client.range(self._keys.commands, timeout_s=TIMEOUT_S)
        )
        return {kv.key.removeprefix(self._keys.commands): Command.decode(kv.value) for kv in found.kvs}

    async def _directive(self) -> Directive:
        found = await self._calls.timed(
            "operator get", TIMEOUT_S, self._client.get(self._keys.agreed, timeout_s=TIMEOUT_S)
        )
        return Agreed.decode(found.value).directive if found is not None else Directive()

    def _next(self) -> Mapping[str, Scalar] | Command:
        """Mostly a change of one name, now and then of several at once, seldom a value that must be rejected; and
        commands, an unknown action among them, which must be declined."""
        if self._chance.random() < COMMANDS:
            return self._next_command()
        if self._chance.random() < 0.08:
            return {"lr": 2.0 + round(self._chance.random(), 6)}
        count = self._chance.choices((1, 2, 3), (7, 2, 1))[0]
        return {name: self._value(name) for name in self._chance.sample(NAMES, count)}

    def _next_command(self) -> Command:
        if not self._bag:  # shuffled decks: even a short run includes most kinds
            self._bag = self._chance.sample(KINDS, len(KINDS))
        match self._bag.pop():
            case "pause":
                self._resume_at = time.monotonic() + self._chance.uniform(*PAUSE_S)
                return Command(kind="pause")
            case "checkpoint":
                return Command(kind="checkpoint")
            case "action":
                return Command(kind="action", name=ACTION)
            case _:
                return Command(kind="action", name=UNKNOWN_ACTION)

    def _value(self, name: str) -> Scalar:
        match name:
            case "lr":
                return round(self._chance.uniform(1e-6, 1.0), 9)
            case "clip":
                return round(self._chance.uniform(0.1, 10.0), 6)
            case "batch_size":
                return self._chance.randrange(1, 1_000_000)
            case _:
                return f"optimizer-{self._chance.randrange(1_000_000)}"

    async def _put(self, values: Mapping[str, Scalar]) -> bool:
        puts = [Op.put(self._keys.config_of(name), json.dumps(value)) for name, value in values.items()]
        try:
            await self._calls.timed("operator txn", TIMEOUT_S, self._client.txn([], puts, timeout_s=TIMEOUT_S))
        except EtcdError:
            self.failures += 1
            return False
        self.puts += 1
        return True

    async def _command_unless_many(self, command: Command) -> None:
        """Commands are carried out one after the other. Few may wait while the run makes no progress:
        a long queue would be worked off long after the last fault."""
        try:
            many = len(await self.pending()) >= MOST_STANDING
        except EtcdError:
            return
        if not many:
            await self._command(command)

    async def _command(self, command: Command) -> None:
        self.commands += 1
        command_id = f"chaos-{self.commands}"
        with self._journal.open("a") as journal:
            journal.write(json.dumps({"id": command_id, "at": time.monotonic()}) + "\n")
        put = self._client.put(self._keys.command(command_id), command.encode(), timeout_s=TIMEOUT_S)
        try:
            await self._calls.timed("operator command", TIMEOUT_S, put)
        except EtcdError:
            self.failures += 1


def read_asked(journal: Path) -> dict[str, float]:
    """When the put of each command was begun (monotonic seconds), by id."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return {line["id"]: line["at"] for line in map(json.loads, lines)}


def keys_of(namespace: str) -> Keys:
    return Keys(namespace, RUN)
