"""Following a change or a command from its write to its receipt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar, overload

from instep.control._cache import RunCache
from instep.control._change import Written
from instep.control._commands import Sent
from instep.control._progress import Progress, Request, is_doubtful, newest_attempt, progress_of
from instep.control._read import MultiWatch, load, load_receipts
from instep.control._requests import ChangeReceipt, ChangeRequest, CommandReceipt, CommandRequest
from instep.errors import InstepError, ReceiptTimeout
from instep.etcd import Client, Event
from instep.outage import Outage
from instep.protocol.keys import Keys
from instep.protocol.records import format_ranks
from instep.recipes.retry import READ, Retry
from instep.text import counted

R = TypeVar("R")

_ATTEMPTS_READ = 40
_LAST_READ_S = 2.0
_POLL_S = 1.0
"""How often it checks whether any worker is alive, and, while it waits for a checkpoint, how far the ranks are."""
_ALONE_S = 5.0
"""After so long without a worker the request will not be carried out: a run that restarts has workers sooner."""
_CANNOT_FINISH_S = 5.0
"""A checkpoint that no rank has begun to write so long after all ranks passed its step will not be saved."""
_RANKS_READ = 64


@overload
def follow(
    client: Client, keys: Keys, asked: Written, timeout_s: float, *, monotonic: Callable[[], float] = time.monotonic
) -> AsyncGenerator[Progress | ChangeReceipt]: ...
@overload
def follow(
    client: Client, keys: Keys, asked: Sent, timeout_s: float, *, monotonic: Callable[[], float] = time.monotonic
) -> AsyncGenerator[Progress | CommandReceipt]: ...
def follow(
    client: Client,
    keys: Keys,
    asked: Written | Sent,
    timeout_s: float,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Progress | ChangeReceipt] | AsyncGenerator[Progress | CommandReceipt]:
    """Follow a change or a command: a Progress each time it advances, then one receipt, then the end.

    The receipt of a command that requests a checkpoint comes when that is committed, or when the ranks passed the step
    long ago without saving it. If no worker of the run has been alive for 5 s, the receipt says so. Raises
    ChangeRejected or CommandRefused when the run refuses it, and after `timeout_s` seconds ReceiptTimeout, which says
    how far it got; the request stays in etcd then. Until then it retries when etcd fails. Close it
    (`contextlib.aclosing`) if you leave before its end.
    """
    if isinstance(asked, Sent):
        return _follow(client, keys, CommandRequest(asked), timeout_s, monotonic)
    return _follow(client, keys, ChangeRequest(asked), timeout_s, monotonic)


@overload
async def wait(client: Client, keys: Keys, asked: Written, timeout_s: float) -> ChangeReceipt: ...
@overload
async def wait(client: Client, keys: Keys, asked: Sent, timeout_s: float) -> CommandReceipt: ...
async def wait(client: Client, keys: Keys, asked: Written | Sent, timeout_s: float) -> ChangeReceipt | CommandReceipt:
    """The receipt alone; otherwise as `follow`."""
    moves: AsyncGenerator[Progress | ChangeReceipt | CommandReceipt] = follow(client, keys, asked, timeout_s)
    async with aclosing(moves):
        async for move in moves:
            if not isinstance(move, Progress):
                return move
    raise AssertionError("following ends with a receipt or an error")


async def _follow(
    client: Client, keys: Keys, request: Request[R], timeout_s: float, monotonic: Callable[[], float]
) -> AsyncGenerator[Progress | R]:
    deadline = monotonic() + timeout_s
    last: Progress | None = None
    async with aclosing(_all_progress(client, keys, request, monotonic)) as moves:
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - monotonic())):
                    cache, progress = await anext(moves)
            except TimeoutError:
                raise await _timed_out(client, keys, request, last, timeout_s) from None
            if progress == last:
                continue
            last = progress
            if progress.outcome is not None and progress.outcome == request.refused_outcome:
                raise request.refused(progress)
            if progress.outcome is not None:
                yield request.receipt(cache, progress, max(0.0, monotonic() - request.asked.asked_at_s))
                return
            yield progress


async def _all_progress(
    client: Client, keys: Keys, request: Request[object], monotonic: Callable[[], float]
) -> AsyncGenerator[tuple[RunCache, Progress]]:
    """Progress without end, each from a cache that is kept up to date. It reads the run again when etcd's history was
    compacted or has gone back."""
    watched = (keys.state, keys.left, *request.watched(keys))
    patience = _Patience(client, monotonic)
    retry = Retry(READ, Outage("the run cannot be followed", level=logging.DEBUG))
    while True:
        changes = client.history.changes
        try:
            cache = await load(
                client,
                keys,
                plans=_ATTEMPTS_READ,
                receipts=0,
                checkpoints=keys.checkpoints in watched,
                must_exist=False,
            )
            attempt = newest_attempt(cache, request)
            if attempt is not None:
                await load_receipts(client, cache, (attempt,))
            progress = progress_of(cache, request)
            if progress.outcome is None and patience.no_worker_is_alive():
                progress = replace(progress, stage="done", outcome="lost" if request.is_lost(cache) else "stopped")
            yield cache, progress
            async with MultiWatch(client, changes) as watch:
                start = cache.revision + 1
                for prefix in watched:
                    watch.add(prefix, start)
                while True:
                    await _watch_answers(client, watch, cache, request)
                    await patience.poll(cache, progress)
                    progress = patience.ended(progress_of(cache, request), cache, request)
                    if is_doubtful(cache, progress) or patience.no_worker_is_alive():
                        break
                    yield cache, progress
                    for event in await _events(watch):
                        if event.kind == "put":
                            cache.put(event.kv)
                        else:
                            cache.delete(event.kv.key)
        except InstepError as error:
            await retry.failed(error)


class _Patience:
    """How long no worker has been alive to carry out the request, or its checkpoint has been missing."""

    def __init__(self, client: Client, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._monotonic = monotonic
        self._polled_s: float | None = None
        self._cannot_finish_since_s: float | None = None
        self._alone_since_s: float | None = None

    async def poll(self, cache: RunCache, progress: Progress) -> None:
        """Once a second: check whether any worker is registered, and while saving how far the ranks are."""
        now = self._monotonic()
        if self._polled_s is not None and now - self._polled_s < _POLL_S:
            return
        self._polled_s = now
        keys = cache.keys
        alive = bool((await self._client.range(keys.members, limit=1, keys_only=True)).kvs)
        self._alone_since_s = None if alive else self._alone_since_s or now
        if progress.stage == "saving":
            listing = await self._client.range(keys.metrics, limit=_RANKS_READ)
            cache.metrics.clear()
            cache.put_all(listing.kvs)

    def no_worker_is_alive(self) -> bool:
        return self._alone_since_s is not None and self._monotonic() - self._alone_since_s >= _ALONE_S

    def ended(self, progress: Progress, cache: RunCache, request: Request[object]) -> Progress:
        """The progress, or the end of it: what it waits for will not happen."""
        if not request.cannot_finish(cache, progress):
            self._cannot_finish_since_s = None
            return progress
        now = self._monotonic()
        self._cannot_finish_since_s = now if self._cannot_finish_since_s is None else self._cannot_finish_since_s
        over = now - self._cannot_finish_since_s >= _CANNOT_FINISH_S
        return replace(progress, stage="done", outcome="unsaved") if over else progress


async def _events(watch: MultiWatch) -> list[Event]:
    """The events of the next second, which may be none."""
    try:
        async with asyncio.timeout(_POLL_S):
            return await watch.next()
    except TimeoutError:
        return []


async def _watch_answers(client: Client, watch: MultiWatch, cache: RunCache, request: Request[object]) -> None:
    """Follow the acks and receipts of the newest attempt: read them once, then watch them."""
    number = newest_attempt(cache, request)
    if number is None:
        return
    prefixes = (f"{cache.keys.acks}{number}/", cache.keys.receipts_of(number))
    if not watch.watches(prefixes[0]):
        await load_receipts(client, cache, (number,))
        for prefix in prefixes:
            watch.add(prefix, cache.revision + 1)


async def _timed_out(
    client: Client, keys: Keys, request: Request[object], last: Progress | None, timeout_s: float
) -> ReceiptTimeout:
    """The error, with the ranks that are missing if etcd answers at once."""
    far = last.when_timed_out if last else "etcd did not say how far it got"
    hint = ""
    try:
        cache = await asyncio.wait_for(load(client, keys, members=True, must_exist=False), _LAST_READ_S)
    except Exception:  # noqa: BLE001  # the timeout is the message, and no failed hint may replace it
        cache = None
    if cache is not None:
        missing = cache.ranks_missing()
        if cache.live and missing:
            hint = f"; {counted(len(missing), 'rank')} missing: {format_ranks(missing)}"
        elif not cache.live:
            hint = "; no worker of the run is alive"
    short = "written, but not applied everywhere" if last is None or last.stage != "saving" else "done, but not saved"
    return ReceiptTimeout(
        f"{request.asked.what}: {short} within {timeout_s:g} s: {far}{hint}. {request.unfinished(last)}"
    )
