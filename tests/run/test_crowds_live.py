"""A run whose prefix in etcd is full of junk: changes apply, and a stop is carried out before waiting commands."""

from __future__ import annotations

import asyncio
import json

from instep.etcd import Client, Op
from instep.protocol.keys import Keys
from run.harness import TrainingRun, wait_for
from run.test_commands_live import order

JUNK = 2000
BATCH = 100


def test_changes_and_a_stop_are_agreed_despite_large_commands_and_many_keys(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    for trainer in trainers:
        trainer.wait_said("config")
    keys = Keys(training.namespace, "gpt-a")
    puts = [Op.put(f"{keys.config}junk{number}", "1") for number in range(JUNK)]
    puts += [Op.put(f"{keys.changes}junk{number}", "[") for number in range(JUNK)]
    puts += [Op.put(keys.command(f"c{number}"), json.dumps({"kind": "checkpoint"})) for number in range(JUNK // 2)]

    async def fill() -> None:
        async with Client(training.server.endpoints) as client:
            await client.put(keys.command("large"), json.dumps({"kind": "pause", "reason": "r" * 700_000}))
            for start in range(0, len(puts), BATCH):
                await client.txn([], puts[start : start + BATCH])

    asyncio.run(fill())
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    order(training, "stop")
    wait_for(lambda: all(trainer.said("stopped") for trainer in trainers), "the run to stop")
    assert training.key("state/declined/large")
    assert [trainer.finish() for trainer in trainers] == [0, 0]
