"""A leader whose listings fail, or whose watches lag."""

from __future__ import annotations

import asyncio

import pytest

from async_support import run, until
from instep.agent.leadership import Leadership, Pace
from instep.agent.state import RunState
from instep.errors import EtcdUnavailable
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Decision, Epoch, Head
from instep.recipes.fence import Fence
from instep.tasks import Background
from instep.testing import EtcdServer
from unit.parts import agreed, plan, registered, view


def test_a_term_whose_first_listing_times_out_ends_with_the_reason(etcd_server: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        keys = Keys(namespace, "run")
        async with Client(etcd_server.endpoints, timeout_s=1.0) as client, Background("the state") as background:
            state = RunState(client, keys, lambda events: None)
            background.start(state.informer.run())
            await state.informer.wait_listed()
            term = Leadership(client, keys, Fence(keys.election, 1), state, pace=lambda: Pace(None, 0.0), ttl_s=10)
            etcd_server.pause()
            try:
                with pytest.raises(EtcdUnavailable):
                    await asyncio.wait_for(term.run(), 30)
            finally:
                etcd_server.resume()

    run(main())


@pytest.mark.parametrize("lost", [False, True])
def test_a_plan_that_only_the_leaders_watch_lacks_is_no_loss(
    etcd_server: EtcdServer, namespace: str, caplog: pytest.LogCaptureFixture, lost: bool
) -> None:
    """A rank has registered since plan 2 was opened, and the leader sees the registration first. Only if etcd lacks the
    plan too has its history gone back."""
    caplog.set_level("INFO")

    async def main() -> None:
        keys = Keys(namespace, "run")
        worker = registered(0, 10, world_size=1)
        member = worker.member.model_copy(update={"view": 1, "head": Head(plan=1, digest="d", told=2)})
        async with Client(etcd_server.endpoints) as client, Background("the term") as background:
            await client.put(keys.election, "")
            candidate = await client.get(keys.election)
            assert candidate is not None
            await client.put(keys.view, view({"a": {0: 10}}).encode())
            await client.put(keys.agreed, agreed(plan=1, digest="d").encode())
            await client.put(keys.plan(1), plan(1).encode())
            await client.put(keys.decision(1), Decision(commit=True).encode())
            state = RunState(client, keys, lambda events: None)
            watch = background.start(state.informer.run())
            await state.informer.wait_listed()
            watch.cancel()
            if not lost:
                await client.put(keys.plan(2), plan(2).encode())
            await client.put(keys.member(0, member.incarnation), member.encode())
            fence = Fence(keys.election, candidate.create_revision)
            term = Leadership(client, keys, fence, state, pace=lambda: Pace(None, 0.0), ttl_s=10)
            background.start(term.run())
            await until(lambda: "epoch 1 begins" in caplog.text if lost else "RaiseEpoch was refused" in caplog.text)
            epoch = await client.get(keys.epoch)
            assert (Epoch.decode(epoch.value).number if epoch is not None else 0) == int(lost)

    run(main())
