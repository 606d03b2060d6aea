"""Holds etcd3's handler, talks to etcd all the time, and forks; prints how its children ended.

Arguments: ENDPOINT NAMESPACE CHILDREN
"""

from __future__ import annotations

import asyncio
import collections
import os
import sys

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

ENDED_WELL = 7


async def talk(endpoint: str) -> None:
    from instep.etcd import Client

    client = Client([endpoint])
    first = await client.get("/nothing")
    assert first is None

    async def on_and_on() -> None:
        while True:
            await client.get("/nothing")

    talk.task = asyncio.create_task(on_and_on())  # type: ignore[attr-defined]


def main(endpoint: str, namespace: str, children: int) -> None:
    params = RendezvousParameters("etcd3", endpoint, "forks", 1, 1, namespace=namespace, last_call_timeout=0)
    handler = get_rendezvous_handler(params)
    handler.next_rendezvous()
    from instep.torch._rendezvous.loop_thread import LoopThread

    LoopThread("talk").run(talk(endpoint))
    codes: collections.Counter[int] = collections.Counter()
    for _ in range(children):
        pid = os.fork()
        if pid == 0:
            sum(range(100_000))
            os._exit(ENDED_WELL)
        codes[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])] += 1
    print(dict(codes), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
