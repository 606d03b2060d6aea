"""A lease that is kept alive, and how long it is known to be valid."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from instep.errors import EtcdError, LeaseLost, SettingsError
from instep.tasks import Background

if TYPE_CHECKING:
    from instep.etcd._client import Client

LeaseState: TypeAlias = Literal["connected", "suspended", "lost"]

# The least that an etcd with default election settings grants.
SMALLEST_TTL_S = 2
_LONGEST_ATTEMPT_S = 2.0


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """When a lease of `ttl_s` seconds is renewed, and until when it counts as valid. Checked on construction.

    `attempt_s` bounds one attempt at one endpoint: a frozen server costs a part of the TTL, not the lease.
    Renewals are frequent, because a leader of etcd that wakes from a freeze may revoke a lease that has expired
    by its own clock although other members kept it alive (docs/decisions/0008-leases.md). A freeze of up to
    `rides_out_s` ends no lease.
    """

    ttl_s: float

    def __post_init__(self) -> None:
        if self.ttl_s < SMALLEST_TTL_S:
            raise SettingsError(f"A lease of {self.ttl_s:g} s is too short: etcd grants {SMALLEST_TTL_S} s or more.")

    @property
    def renew_every_s(self) -> float:
        """The pause between renewals, in seconds."""
        return min(self.ttl_s / 3, _tenth(self.ttl_s))

    @property
    def margin_s(self) -> float:
        """How long before its end by etcd's clock the lease counts as lost, in seconds."""
        return self.ttl_s / 10

    @property
    def attempt_s(self) -> float:
        """The timeout of one renewal, in seconds."""
        return min(self.ttl_s / 6, _tenth(self.ttl_s), _LONGEST_ATTEMPT_S)

    @property
    def rides_out_s(self) -> float:
        """The longest freeze of etcd's leader that cannot cost the lease while the other members answer."""
        return self.ttl_s - self.renew_every_s - self.attempt_s

    @property
    def retry_s(self) -> float:
        """The pause between failed renewals, in seconds."""
        return self.ttl_s / 20

    def valid_until(self, sent_at: float) -> float:
        """Counted from when the keepalive was SENT; etcd counts from its arrival, which is later."""
        return sent_at + self.ttl_s - self.margin_s


def _tenth(ttl_s: float) -> float:
    """A tenth of the TTL, but at least 0.5 s: short leases must not flood etcd."""
    return max(0.5, ttl_s / 10)


class LeaseKeeper:
    """Owns one lease: grants it on entry, renews it in the background, revokes it on leaving.

    `valid` is computed at each read, from the clock: a process that was stopped past its TTL sees False at once.
    A lost lease stays lost. A lease that etcd cannot confirm in time counts as lost although etcd may still hold
    it.
    """

    def __init__(self, client: Client, *, ttl_s: int = 10, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._timing = LeaseTiming(ttl_s)
        self._ttl_s = ttl_s
        self._clock = clock
        self._id = 0
        self._valid_until = 0.0
        self._endpoint = 0
        self._confirmed = False
        self._gone = False
        self._lost = asyncio.Event()
        self._changed = asyncio.Event()
        self._keeping = Background("keeping a lease alive")
        self.renewals = 0

    def __repr__(self) -> str:
        return f"LeaseKeeper(lease_id={self._id:x}, {self.state}, {self.remaining_s:.1f} s left)"

    @property
    def lease_id(self) -> int:
        """0 before entry."""
        return self._id

    @property
    def ttl_s(self) -> float:
        """The time to live that etcd granted, in seconds."""
        return self._timing.ttl_s

    @property
    def remaining_s(self) -> float:
        """For how many seconds the lease is valid without another renewal; never below 0."""
        return 0.0 if self._gone else max(0.0, self._valid_until - self._clock())

    @property
    def valid(self) -> bool:
        """Whether the lease can be relied on now."""
        return self.remaining_s > 0

    @property
    def state(self) -> LeaseState:
        """`suspended`: valid, but no endpoint answered the last renewal."""
        if not self.valid:
            return "lost"
        return "connected" if self._confirmed else "suspended"

    def abandon(self) -> None:
        """Counts it as lost from now on; leaving revokes it."""
        self._valid_until = 0.0
        self._lost.set()
        self._changed.set()

    async def wait_lost(self) -> None:
        """Returns when the lease is lost: etcd reported it, or its time ran out unconfirmed."""
        await self._lost.wait()

    async def wait_state_change(self) -> LeaseState:
        """Returns the state after the next change between connected, suspended and lost."""
        before = self.state
        while self.state == before and not self._lost.is_set():
            self._changed.clear()
            await self._changed.wait()
        return self.state

    async def __aenter__(self) -> Self:
        sent_at = self._clock()
        lease = await self._client.lease_grant(self._ttl_s)
        self._id = lease.id
        self._timing = LeaseTiming(lease.ttl_s)
        self._valid_until = self._timing.valid_until(sent_at)
        self._endpoint = self._client.endpoint_index
        self._confirmed = True
        self._keeping.start(self._keep(), name=f"lease {lease.id:x}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gone = self._gone
        await self._keeping.close()
        self._declare_lost()
        if not gone:
            with contextlib.suppress(EtcdError):
                await self._client.lease_revoke(self._id, timeout_s=self._timing.attempt_s)

    async def _keep(self) -> None:
        pause_s = self._timing.renew_every_s
        while self.valid:
            # Nodes that were cut off together must not renew at the same moments from then on.
            await asyncio.sleep(max(0.0, min(pause_s * random.uniform(0.9, 1.0), self.remaining_s)))
            if self.valid:  # otherwise others may have acted on its loss, though etcd still holds it
                await self._renew_anywhere()
            pause_s = self._timing.renew_every_s if self._confirmed else self._timing.retry_s
        self._declare_lost()

    async def _renew_anywhere(self) -> None:
        for _ in range(self._client.endpoint_count):
            if await self._renew():
                return
            if not self.valid:
                break
        self._confirmed = False
        self._changed.set()

    async def _renew(self) -> bool:
        """Makes one attempt at one endpoint; after a failure the next endpoint is used."""
        sent_at = self._clock()
        limit_s = min(self._timing.attempt_s, self.remaining_s)
        try:
            await self._client.keepalive(self._id, timeout_s=max(limit_s, 0.01), endpoint_index=self._endpoint)
        except LeaseLost:
            self._gone = True
            return False
        except (EtcdError, SettingsError):
            self._endpoint = (self._endpoint + 1) % self._client.endpoint_count
            return False
        if not self.valid:
            return False  # its time ran out in the meantime, which others may have seen
        self.renewals += 1
        self._confirmed = True
        self._valid_until = self._timing.valid_until(sent_at)
        self._changed.set()
        return True

    def _declare_lost(self) -> None:
        self._gone = True
        self._lost.set()
        self._changed.set()
