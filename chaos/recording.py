"""etcd's history, recorded twice: by a watch that lasts through every fault, and by new watches between faults.

The second recording is the reference for the first, and the input of the checks of the run's own rules.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from chaos.harness.tasks import until
from chaos.timed_calls import TimedCalls
from instep.errors import EtcdError
from instep.etcd import Client, Event, KeyValue, WatchBatch

TIMEOUT_S = 3.0
EXTEND_TIMEOUT_S = 10.0
RETRY_S = 0.3
FIRST_REVISION = 1
"""A new cluster has compacted nothing."""


class EventLog:
    """Batches of events in a file, one per line, because an hour of them need not fit into memory twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a")

    def add(self, batch: WatchBatch, at: float) -> None:
        events = [[event.kind, *_fields(event.kv)] for event in batch.events]
        self._file.write(json.dumps({"at": round(at, 6), "revision": batch.revision, "events": events}) + "\n")

    def close(self) -> None:
        self._file.close()


def read_event_log(path: Path) -> Iterator[tuple[float, WatchBatch]]:
    """What `EventLog` has written, in order: when each batch was heard (monotonic seconds), and the batch."""
    with path.open() as lines:
        for line in lines:
            document = json.loads(line)
            events = tuple(Event(kind, _key_value(*fields)) for kind, *fields in document["events"])
            yield document["at"], WatchBatch(document["revision"], events)


class LongWatch:
    """One watch of everything, from the first revision on, for as long as the session lasts."""

    def __init__(self, client: Client, prefix: str, path: Path) -> None:
        self.heard: list[tuple[float, int]] = []
        """When each revision was heard, of the batches that hold a beat: (monotonic seconds, revision)."""
        self.resumes = 0
        self._client = client
        self._prefix = prefix
        self._log = EventLog(path)
        self.next_revision = FIRST_REVISION
        self.problem: str | None = None

    def __repr__(self) -> str:
        return f"LongWatch(next_revision={self.next_revision}, resumes={self.resumes})"

    async def run(self, beat_key: str) -> None:
        """Runs until cancelled. A watch that ends is a failure, because nothing that it needs is ever compacted.

        A watch that could not be started is started again: etcd may be slow to answer while everything starts.
        """
        while not await self._follow(beat_key):  # noqa: ASYNC110  # not an event: it is tried again
            await asyncio.sleep(RETRY_S)

    async def _follow(self, beat_key: str) -> bool:
        """False when the watch could not be begun."""
        begun = False
        try:
            async with self._client.watch(self._prefix, start_revision=self.next_revision) as watch:
                begun = True
                async for batch in watch:
                    at = time.monotonic()
                    self._log.add(batch, at)
                    self.next_revision, self.resumes = watch.next_revision, watch.resumes
                    self.heard += [(at, e.kv.mod_revision) for e in batch.events if e.kv.key == beat_key]
            self.problem = "the watch ended"
        except EtcdError as error:
            if not begun:
                return False
            self.problem = f"the watch ended: {error}"
        return True

    async def wait_heard(self, revision: int, timeout_s: float) -> bool:
        """Whether the watch has reached that revision in time."""
        return await until(lambda: self.next_revision > revision, timeout_s)

    def close(self) -> None:
        self._log.close()


class HistoryReader:
    """The same history read by new clients and new watches, before each compaction and at the end."""

    def __init__(self, endpoints: Sequence[str], prefix: str, path: Path, calls: TimedCalls) -> None:
        self.next_revision = FIRST_REVISION
        self._endpoints = endpoints
        self._prefix = prefix
        self._calls = calls
        self._log = EventLog(path)
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"HistoryReader(next_revision={self.next_revision})"

    async def extend(self) -> int:
        """Reads on to a key written now; returns its revision. Raises EtcdError or TimeoutError when etcd is away."""
        async with self._lock, Client(self._endpoints, timeout_s=TIMEOUT_S) as client:
            mark = await self._calls.timed("reference put", TIMEOUT_S, client.put(f"{self._prefix}mark", "here"))
            async with asyncio.timeout(EXTEND_TIMEOUT_S):
                async with client.watch(self._prefix, start_revision=self.next_revision) as watch:
                    while self.next_revision <= mark:
                        batch = await anext(watch)
                        self._log.add(batch, time.monotonic())
                        self.next_revision = watch.next_revision
            return mark

    async def extend_at_last(self, timeout_s: float) -> int:
        """Retries `extend` until it succeeds; raises the last error when the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return await self.extend()
            except (EtcdError, TimeoutError):
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(RETRY_S)

    def close(self) -> None:
        self._log.close()


async def compact(client: Client, reference: HistoryReader, watcher: LongWatch, calls: TimedCalls) -> bool:
    """Compacts all that both recordings hold; False while etcd is unreachable.

    Agents that are behind lose history that they need, and list again.
    """
    try:
        revision = min(await reference.extend(), watcher.next_revision - 1)
        await calls.timed("compact", TIMEOUT_S, client.compact(revision, timeout_s=TIMEOUT_S))
    except (EtcdError, TimeoutError):
        return False
    return True


def by_revision(events: Iterable[Event]) -> Iterator[tuple[int, list[Event]]]:
    """Each revision with its events: all of one transaction. `events` hold whole revisions, in order."""
    for revision, group in groupby(events, key=lambda event: event.kv.mod_revision):
        yield revision, list(group)


def _fields(kv: KeyValue) -> list[Any]:
    return [kv.key, kv.text, kv.create_revision, kv.mod_revision, kv.version, kv.lease]


def _key_value(key: str, text: str, create: int, mod: int, version: int, lease: int) -> KeyValue:
    return KeyValue(key, text.encode(), create, mod, version, lease)
