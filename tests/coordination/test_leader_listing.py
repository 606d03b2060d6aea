"""A term that cannot list everything that a leader needs ends, and the next one leads."""

from __future__ import annotations

import asyncio

import pytest

from async_support import run
from instep.agent.leadership import Leadership, Pace
from instep.agent.state import RunState
from instep.errors import EtcdUnavailable
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.recipes.fence import Fence
from instep.tasks import Background
from instep.testing import EtcdServer


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
