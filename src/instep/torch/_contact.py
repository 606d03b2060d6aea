"""The first word with etcd: whether it is there, takes us, and is one cluster."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from instep.coordination.rendezvous.keys import RendezvousKeys
from instep.errors import EtcdUnavailable, SettingsError
from instep.etcd import Client, Status

log = logging.getLogger("instep")

ATTEMPT_S: Final = 3.0
PAUSE_S: Final = 0.3
CLUSTERS_S: Final = 1.0


async def reach(client: Client, keys: RendezvousKeys, limit_s: float) -> None:
    """Returns once etcd has answered a read of the run's round, which it is given `limit_s` seconds for.

    Raises EtcdUnavailable after that, EtcdDenied when it refuses us, and SettingsError when the endpoints are of
    different clusters, which would be different rendezvous. Limit: the last is seen only while all endpoints answer.
    """
    deadline = time.monotonic() + limit_s
    said = False
    while True:
        left_s = max(0.1, round(deadline - time.monotonic(), 1))
        try:
            await client.get(keys.round, timeout_s=min(ATTEMPT_S, left_s))
            break
        except EtcdUnavailable as error:
            if time.monotonic() + PAUSE_S >= deadline:
                raise EtcdUnavailable(f"etcd was not reached in {limit_s:g} s: {error}") from None
            if not said:
                log.warning("etcd is tried for %g s (connect_timeout): %s", limit_s, error)
            said = True
        await asyncio.sleep(PAUSE_S)
    if said:
        log.warning("etcd answers now")
    if client.endpoint_count > 1:
        await _check_one_cluster(client)


async def _check_one_cluster(client: Client) -> None:
    try:
        async with asyncio.timeout(CLUSTERS_S):
            statuses = await client.status(timeout_s=CLUSTERS_S)
    except TimeoutError:
        return
    other = of_another_cluster(statuses)
    if other is not None:
        first, second = other
        raise SettingsError(
            f"{first.endpoint} and {second.endpoint} are members of different etcd clusters ({first.cluster_id:x} and "
            f"{second.cluster_id:x}): give the endpoints of one cluster"
        )


def of_another_cluster(statuses: tuple[Status, ...]) -> tuple[Status, Status] | None:
    """Two that are of different clusters, of those that have answered."""
    known = [status for status in statuses if status.cluster_id]
    return next(((known[0], status) for status in known if status.cluster_id != known[0].cluster_id), None)
