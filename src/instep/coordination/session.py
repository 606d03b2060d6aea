"""A node's lease and everything that stands on it. Lost, it is taken anew and its keys are written again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from instep.errors import InstepError
from instep.etcd import Client, LeaseKeeper

log = logging.getLogger("instep")

RETRY_S = 0.2
MAX_RETRY_S = 2.0

OnLease = Callable[[int], Awaitable[None]]


class Session:
    """Promise: while `lease_id` is not 0 the lease could be shown to be valid a moment ago, and each time a new one is
    taken `on_lease(lease_id)` has written the node's keys on it. Limit: between two leases the node's keys are gone,
    and others may have acted on that; whoever was leader must win again.
    """

    def __init__(self, client: Client, ttl_s: int, on_lease: OnLease) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._on_lease = on_lease
        self._keeper: LeaseKeeper | None = None
        self.leases = 0

    def __repr__(self) -> str:
        return f"Session({self._keeper or 'no lease'}, {self.leases} leases so far)"

    @property
    def lease_id(self) -> int:
        """0 while there is no lease that can be relied on."""
        return self._keeper.lease_id if self._keeper is not None and self._keeper.valid else 0

    @property
    def valid(self) -> bool:
        return self.lease_id != 0

    async def run(self) -> None:
        """Keeps a lease until cancelled, then revokes it."""
        pause_s = RETRY_S
        while True:
            try:
                async with LeaseKeeper(self._client, ttl_s=self._ttl_s) as keeper:
                    self._keeper = keeper
                    self.leases += 1
                    await self._on_lease(keeper.lease_id)
                    pause_s = RETRY_S
                    await keeper.wait_lost()
                    log.warning("the lease was lost; taking a new one")
            except InstepError as error:
                log.warning("no lease can be had (%s): again in %.1f s", error, pause_s)
            finally:
                self._keeper = None
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_RETRY_S, pause_s * 2)
