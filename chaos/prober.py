"""A client that reads and writes continuously, and how long each fault of a member interrupts it."""

from __future__ import annotations

import asyncio
import statistics
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.servers import Outage
from chaos.timed_calls import TimedCalls
from instep.errors import EtcdError
from instep.etcd import Client

TIMEOUT_S = 2.0
PAUSE_S = 0.1


class Prober:
    """Alternates a get and a put of its own key, ten calls a second."""

    def __init__(self, client: Client, key: str, calls: TimedCalls) -> None:
        self.key = key
        self.successes: list[tuple[float, float]] = []
        """Begin and end of each call that succeeded."""
        self.puts: list[tuple[float, int]] = []
        """When each put had succeeded, and its revision."""
        self.failures = 0
        self._client = client
        self._calls = calls

    def __repr__(self) -> str:
        return f"Prober({len(self.successes)} calls succeeded, {self.failures} failed)"

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._calls.timed("probe get", TIMEOUT_S, self._client.get(self.key, timeout_s=TIMEOUT_S))
                self.successes.append((began, time.monotonic()))
                began = time.monotonic()
                put = self._client.put(self.key, "beat", timeout_s=TIMEOUT_S)
                revision = await self._calls.timed("probe put", TIMEOUT_S, put)
                self.successes.append((began, time.monotonic()))
                self.puts.append((time.monotonic(), revision))
            except EtcdError:
                self.failures += 1
            await asyncio.sleep(PAUSE_S)


@dataclass(frozen=True, slots=True)
class Recovery:
    """The number of faults of a kind, and the duration of the recoveries in seconds; 0 s without faults."""

    faults: int
    median_s: float
    longest_s: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Recovery:
        if not figures:
            return cls(0, 0.0, 0.0)
        return cls(len(figures), round(statistics.median(figures), 3), round(max(figures), 3))


def calls_succeed_after(outages: Sequence[Outage], successes: Sequence[tuple[float, float]]) -> list[float]:
    """The time from the start of each outage to the end of the first call that began after it and succeeded."""
    begins = [began for began, _ in successes]
    found = [(outage, bisect_left(begins, outage.began)) for outage in outages]
    return [successes[place][1] - outage.began for outage, place in found if place < len(successes)]


def planned_after(kills: Sequence[float], plans: Sequence[float]) -> list[float]:
    """The time from each kill to the next plan; the operator makes several requests per second."""
    found = [(at, bisect_left(plans, at)) for at in kills]
    return [plans[place] - at for at, place in found if place < len(plans)]


def watch_resumes_after(
    outages: Sequence[Outage], puts: Sequence[tuple[float, int]], heard: Sequence[tuple[float, int]]
) -> list[float]:
    """How much later than its success the watch received the first put after each outage."""
    heard_at = {revision: at for at, revision in heard}
    times = [at for at, _ in puts]
    delays: list[float] = []
    for outage in outages:
        place = bisect_left(times, outage.began)
        if place < len(puts) and (at := heard_at.get(puts[place][1])) is not None:
            delays.append(max(0.0, at - puts[place][0]))
    return delays
