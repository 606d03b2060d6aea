"""Values that were set once, and a script that wants its own."""

from __future__ import annotations

import asyncio

from instep.control import Keys, unset_values
from instep.etcd import Client
from run.harness import TrainingRun, wait_for


def test_a_value_that_was_set_is_named_at_the_next_start_and_gone_after_unset(training: TrainingRun) -> None:
    training.put("lr", "0.01")
    (first,) = training.start_all(1)
    wait_for(lambda: any("lr=0.01 (script: 0.0003)" in line for line in first.errors), "the difference")
    keys = Keys(training.namespace, "gpt-a")

    async def unset() -> None:
        async with Client(training.server.endpoints) as client:
            done = await unset_values(client, keys, ["lr", "clip"])
        assert (done.names, done.without) == (("lr",), ("clip",))

    asyncio.run(unset())
    assert first.said("config")[-1]["config"]["lr"] == 0.01
    training.stop(first)
    (second,) = training.start_all(1)
    assert second.said("joined")[0]["config"]["lr"] == 3e-4
    training.stop(second)
    assert not any("instead of this script's" in line for line in second.errors)
