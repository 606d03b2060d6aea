"""Values that were set once, and a script that prefers its own."""

from __future__ import annotations

import asyncio

from instep.control import HistoryEntry, Keys, history, unset_values
from instep.etcd import Client
from run.harness import TrainingRun, wait_for


def newest_start(training: TrainingRun) -> HistoryEntry:
    async def read() -> HistoryEntry:
        async with Client(training.server.endpoints) as client:
            entries = (await history(client, Keys(training.namespace, "gpt-a"))).entries
        return next(entry for entry in entries if entry.outcome == "started")

    return asyncio.run(read())


def test_a_set_value_is_named_at_the_next_start_and_gone_after_unset(training: TrainingRun) -> None:
    training.put("lr", "0.01")
    (first,) = training.start_all(1)
    wait_for(lambda: any("lr=0.01 (script: 0.0003)" in line for line in first.errors), "the difference")
    keys = Keys(training.namespace, "gpt-a")

    async def unset() -> None:
        async with Client(training.server.endpoints) as client:
            done = await unset_values(client, keys, ["lr", "clip"])
        assert (done.names, done.without) == (("lr",), ("clip",))

    asyncio.run(unset())
    assert first.wait_said("config")["config"]["lr"] == 0.01
    training.stop(first)
    (second,) = training.start_all(1)
    assert second.said("joined")[0]["config"]["lr"] == 3e-4
    training.stop(second)
    assert not any("instead of this script's" in line for line in second.errors)
    entry = newest_start(training)
    assert (entry.what, entry.reason) == ("lr 0.01 → 3e-4", "the script's own values")


def test_a_start_that_prefers_the_script_trains_with_its_values_and_takes_changes_made_later(
    training: TrainingRun,
) -> None:
    training.put("lr", "0.01")
    trainers = training.start_all(2, "--prefer=script")
    assert training.key("state/rejected/lr")["by"] == "script"
    entry = newest_start(training)
    assert (entry.what, entry.reason) == ("lr 0.01 → 3e-4", "the script's own values")
    training.put("lr", "0.02")
    for trainer in trainers:
        trainer.wait_config(lr=0.02)
        assert [said["config"]["lr"] for said in trainer.said("config")] == [3e-4, 0.02]
    training.stop(*trainers)
    (third,) = training.start_all(1)
    assert third.said("joined")[0]["config"]["lr"] == 0.02
    training.stop(third)
