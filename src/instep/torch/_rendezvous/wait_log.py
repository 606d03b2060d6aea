"""Logs what a node waits for, after ten seconds and then less and less often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

from instep.errors import EtcdError
from instep.etcd import Client
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Limits, Registration
from instep.tasks import Background
from instep.text import counted

log = logging.getLogger("instep")

T = TypeVar("T")

FIRST_S: Final = 10.0
LONGEST_S: Final = 600.0
MOST_READ: Final = 64
"""The limit of registrations read to count them. With more, the log gives no number."""
READ_S: Final = 3.0


async def log_while_waiting(
    seat: Coroutine[Any, Any, T],
    client: Client,
    keys: RendezvousKeys,
    node: RendezvousNode,
    limits: Limits,
    *,
    last_call_s: float,
    first_s: float = FIRST_S,
) -> T:
    """Awaits `seat` and returns its result. Meanwhile logs at WARNING what it waits for: after `first_s`, then at
    doubling intervals, with one read from etcd each time."""
    async with Background("the notice of what the rendezvous waits for") as logging_task:
        logging_task.start(_log_waits(client, keys, node, limits, last_call_s, first_s))
        return await seat


async def _log_waits(
    client: Client, keys: RendezvousKeys, node: RendezvousNode, limits: Limits, last_call_s: float, pause_s: float
) -> None:
    while True:
        await asyncio.sleep(pause_s)
        pause_s = min(LONGEST_S, pause_s * 2)
        try:
            found = await client.range(keys.nodes, limit=MOST_READ, timeout_s=READ_S)
        except EtcdError:  # reported by the code that needs etcd
            continue
        known = [Registration.decode_or_none(item.value) for item in found.kvs]
        current = node.known.round
        if node.is_spare and current is not None:
            text: str | None = (
                f"this node is a spare: round {current.number} has all of its {limits.max_nodes} nodes; it waits until "
                "one of them leaves"
            )
        else:
            registered = [one for one in known if one is not None]
            text = (
                what_is_missing(registered, limits, last_call_s) if len(known) < MOST_READ else "waiting for more nodes"
            )
        if text is not None:
            log.warning("rendezvous of %s: %s", keys.run, text)


def what_is_missing(registered: Sequence[Registration], limits: Limits, last_call_s: float) -> str | None:
    """Why the registered nodes do not form a round; None if one is about to be formed."""
    asking = [one for one in registered if one.asks]
    epoch = max((one.epoch for one in asking), default=0)
    former = sum(one.epoch < epoch for one in registered)
    running = sum(one.epoch == epoch and not one.asks for one in registered)
    count = sum(one.epoch == epoch for one in asking)
    if former:
        return f"waiting until the nodes of the ended run have left: {counted(former, 'node')} registered"
    if running:
        return f"waiting until the training nodes ({counted(running, 'node')}) stop their workers and join this one"
    if count < limits.min_nodes:
        return f"{counted(count, 'node')} of --nnodes={limits}: waiting for {limits.min_nodes - count} more"
    if count < limits.max_nodes:
        return (
            f"{counted(count, 'node')} of --nnodes={limits}: waiting {last_call_s:g} s (last_call_timeout) for others"
        )
    return None
