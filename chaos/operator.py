"""The operator: changes of the run's hyperparameters all the time, drawn from the seed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping

from chaos.clocked import Calls
from chaos.trainer import RUN
from instep.coordination.keys import Keys
from instep.errors import EtcdError
from instep.etcd import Client, Op
from instep.scalar import Scalar

TIMEOUT_S = 2.0
RETRY_S = 0.3
NAMES = ("lr", "clip", "batch_size", "name")
FINAL: Mapping[str, Scalar] = {"lr": 0.123456, "clip": 7.654321, "batch_size": 77, "name": "final"}
"""What the operator asks for in the end: all ranks must hold exactly this."""


class Operator:
    """Puts desired values into etcd as a front end does; the fate of a put is read from the history afterwards.

    Commands (pause, resume, stop, checkpoint, actions) have their place in `_next`, beside the changes.
    """

    def __init__(self, client: Client, keys: Keys, calls: Calls, seed: int) -> None:
        self.puts = 0
        self.failures = 0
        self._client = client
        self._keys = keys
        self._calls = calls
        self._chance = random.Random(seed)

    def __repr__(self) -> str:
        return f"Operator(puts={self.puts}, failures={self.failures})"

    async def run(self) -> None:
        """Changes something every 0.1 to 0.6 s, until cancelled."""
        while True:
            await self._put(self._next())
            await asyncio.sleep(self._chance.uniform(0.1, 0.6))

    async def settle(self) -> None:
        """Asks for the final values until etcd has them."""
        while not await self._put(FINAL):  # noqa: ASYNC110  # not an event: it is tried again
            await asyncio.sleep(RETRY_S)

    def _next(self) -> Mapping[str, Scalar]:
        """One change: mostly one name, now and then several at once, seldom a value that must be rejected."""
        if self._chance.random() < 0.08:
            return {"lr": 2.0 + round(self._chance.random(), 6)}
        count = self._chance.choices((1, 2, 3), (7, 2, 1))[0]
        return {name: self._value(name) for name in self._chance.sample(NAMES, count)}

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


def keys_of(namespace: str) -> Keys:
    return Keys(namespace, RUN)
