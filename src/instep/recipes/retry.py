"""The one way to retry: a policy names the errors and the pauses, and the log gets one line per outage."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from instep.errors import Compacted, EtcdDenied, EtcdError, EtcdFull, EtcdUnavailable, InstepError, LeaseLost
from instep.outage import Outage

log = logging.getLogger("instep")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Which errors are retried, and the pauses between attempts in seconds. Any other error is raised.

    The pause starts at `first_s` and doubles up to `longest_s`. A full database has the pause `full_s`; an error that
    only people can fix, such as a missing permission, has `denied_s`. Each pause is shortened by up to `jitter` of
    itself at random, because many nodes see the same outage.
    """

    retried: tuple[type[InstepError], ...]
    first_s: float = 0.2
    longest_s: float = 0.2
    full_s: float = 1.0
    denied_s: float = 5.0
    jitter: float = 0.25

    def pause_s(self, error: InstepError, failures: int) -> float:
        """The pause after `failures` failures in a row, of which `error` is the last, without jitter."""
        if isinstance(error, EtcdDenied) or not isinstance(error, EtcdError):
            return self.denied_s
        pause_s = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return max(pause_s, self.full_s) if isinstance(error, EtcdFull) else pause_s


PASSING: Final = RetryPolicy(retried=(EtcdUnavailable, EtcdFull, Compacted, LeaseLost))
"""For a recipe within its timeout: the same request may succeed later."""
UNAVAILABLE: Final = RetryPolicy(retried=(EtcdUnavailable,))
"""For work that waits for etcd to answer, and for nothing else."""
REGISTER: Final = RetryPolicy(retried=(EtcdUnavailable, EtcdFull))
"""For registrations: a lost lease ends them, because the next lease registers again."""
READ: Final = RetryPolicy(retried=(EtcdUnavailable, Compacted))
"""For a read and a watch that start over together."""
NEXT_LEASE: Final = RetryPolicy(retried=(LeaseLost, EtcdFull))
"""For work whose attempts already wait for an etcd that does not answer."""
WRITE: Final = RetryPolicy(retried=(EtcdError,), first_s=0.05, longest_s=1.0)
"""For a write that must reach etcd. An invalid request is raised: it would fail each time."""
SERVICE: Final = RetryPolicy(retried=(InstepError,))
"""For loops that run as long as their process: no error of one attempt ends them."""
FOLLOW: Final = RetryPolicy(retried=(InstepError,), first_s=0.5, longest_s=0.5)
"""The same for an informer, whose client has retried already."""
LEASE: Final = RetryPolicy(retried=(InstepError,), longest_s=2.0)
"""The same for a session, which takes a lease."""


class Retry:
    """Retries one piece of work under a policy.

    Promise: `failed` returns after the pause, or raises the error if the policy does not retry it or `timeout_s`
    seconds have passed since this object was made. Limit: the timeout does not end an attempt that is under way.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        outage: Outage | str,
        *,
        timeout_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`outage` says what waits, for the log; pass an Outage to share one among several retries."""
        self._policy = policy
        self._outage = outage if isinstance(outage, Outage) else Outage(outage, clock=clock)
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._failures = 0

    def __repr__(self) -> str:
        return f"Retry({self._outage!r})"

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Returns the result of the first attempt that succeeds."""
        while True:
            try:
                result = await attempt()
            except InstepError as error:
                await self.failed(error)
            else:
                self.succeeded()
                return result

    async def failed(self, error: InstepError) -> None:
        """Logs the failure and pauses."""
        await self._sleep(self.pause_s(error))

    def pause_s(self, error: InstepError) -> float:
        """Logs the failure and returns the pause in seconds, for a caller that waits in its own way."""
        if not isinstance(error, self._policy.retried):
            raise error
        self._failures += 1
        pause_s = self._policy.pause_s(error, self._failures)
        pause_s *= 1 - self._uniform(0.0, self._policy.jitter)
        if self._deadline is not None and self._clock() + pause_s >= self._deadline:
            raise error
        self._outage.met(error)
        return pause_s

    def succeeded(self) -> None:
        """Ends the outage: the next pause is the first one again."""
        self._failures = 0
        self._outage.over()


async def retry_until_done(step: Callable[[], Awaitable[bool]], what: str) -> None:
    """Repeats `step` until it returns True. An error that does not pass is logged and ends it."""
    retry = Retry(PASSING, Outage(f"{what} is not removed yet", level=logging.DEBUG))
    try:
        while not await retry.run(step):
            pass
    except InstepError as error:
        log.error("%s cannot be removed: %s", what, error)
