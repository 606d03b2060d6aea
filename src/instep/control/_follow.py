"""Following a change or a command from its write to its receipt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar, overload

from instep.control._change import Written
from instep.control._change_wish import ChangeReceipt, ChangeWish
from instep.control._command import Sent
from instep.control._command_wish import CommandReceipt, CommandWish
from instep.control._facts import Facts
from instep.control._feed import Feed
from instep.control._load import load, load_receipts
from instep.control._picture import Picture
from instep.control._stand import Stand, Wish, describe, how_far, is_doubtful, newest_attempt, stand_of
from instep.control._text import counted
from instep.errors import Compacted, EtcdUnavailable, ReceiptTimeout
from instep.etcd import Client, Event
from instep.protocol.keys import Keys
from instep.protocol.records import format_ranks

R = TypeVar("R")

_ATTEMPTS_READ = 40
_LAST_LOOK_S = 2.0
_PAUSE_S = 0.2
_LOOK_S = 1.0
"""How often it is looked whether any worker is alive, and how far the ranks are while a checkpoint is waited for."""
_ALONE_S = 5.0
"""After so long without a worker, the request will not be done: a run that restarts has workers again sooner."""
_HOPELESS_S = 5.0
"""A checkpoint that no rank has begun to write so long after all ranks passed its step will not be saved."""
_RANKS_LOOKED_AT = 64


@dataclass(frozen=True, slots=True)
class Progress(Facts):
    """One move of a change or a command towards its receipt."""

    stage: str
    plan: int | None
    gate: int | None
    attempt: int
    armed: int
    applied: int
    ranks: int
    sentence: str


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
    """What happens to a change or a command: Progress as often as it moves, then one receipt, and the end.

    Of a command that asks for a checkpoint the receipt comes when that is committed, or when the ranks have long been
    past the step without saving it. Where no worker of the run has been alive for 5 s, the receipt says so. Raises
    ChangeRejected or CommandRefused when the run refuses it, and ReceiptTimeout, which says how far it got, after
    `timeout_s` seconds; it then stays as it is. etcd trouble is ridden out until then. Close it
    (`contextlib.aclosing`) when you leave before its end.
    """
    if isinstance(asked, Sent):
        return _follow(client, keys, CommandWish(asked), timeout_s, monotonic)
    return _follow(client, keys, ChangeWish(asked), timeout_s, monotonic)


@overload
async def wait(client: Client, keys: Keys, asked: Written, timeout_s: float) -> ChangeReceipt: ...
@overload
async def wait(client: Client, keys: Keys, asked: Sent, timeout_s: float) -> CommandReceipt: ...
async def wait(client: Client, keys: Keys, asked: Written | Sent, timeout_s: float) -> ChangeReceipt | CommandReceipt:
    """As `follow`, for who wants the end alone."""
    moves: AsyncGenerator[Progress | ChangeReceipt | CommandReceipt] = follow(client, keys, asked, timeout_s)
    async with aclosing(moves):
        async for move in moves:
            if not isinstance(move, Progress):
                return move
    raise AssertionError("following ends with a receipt or an error")


async def _follow(
    client: Client, keys: Keys, wish: Wish[R], timeout_s: float, monotonic: Callable[[], float]
) -> AsyncGenerator[Progress | R]:
    deadline = monotonic() + timeout_s
    last: Stand | None = None
    async with aclosing(_stands(client, keys, wish, monotonic)) as stands:
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - monotonic())):
                    picture, stand = await anext(stands)
            except TimeoutError:
                raise await _timed_out(client, keys, wish, last, timeout_s) from None
            if stand == last:
                continue
            last = stand
            if stand.outcome is not None and stand.outcome == wish.refused_outcome:
                raise wish.refused(stand)
            if stand.outcome is not None:
                yield wish.receipt(picture, stand, max(0.0, monotonic() - wish.asked_at_s))
                return
            yield _progress(stand)


async def _stands(
    client: Client, keys: Keys, wish: Wish[object], monotonic: Callable[[], float]
) -> AsyncGenerator[tuple[Picture, Stand]]:
    """Stands without end, each from a picture kept up to date; started again when etcd's history was compacted or has
    gone back."""
    watched = (keys.state, keys.left, *wish.watched(keys))
    patience = _Patience(client, monotonic)
    while True:
        changes = client.history.changes
        try:
            picture = await load(
                client, keys, plans=_ATTEMPTS_READ, receipts=0, checkpoints=keys.checkpoints in watched
            )
            attempt = newest_attempt(picture, wish)
            if attempt is not None:
                await load_receipts(client, picture, (attempt,), picture.revision)
            stand = stand_of(picture, wish)
            if stand.outcome is None and patience.nobody_is_alive():
                stand = replace(stand, stage="done", outcome="lost" if wish.is_lost(picture) else "stopped")
            yield picture, stand
            async with Feed(client, changes) as feed:
                start = picture.revision + 1
                for prefix in watched:
                    feed.add(prefix, start)
                while True:
                    await _watch_answers(client, feed, picture, wish)
                    await patience.look(picture, stand)
                    stand = patience.ended(stand_of(picture, wish), picture, wish)
                    if is_doubtful(picture, stand) or patience.nobody_is_alive():
                        break
                    yield picture, stand
                    for event in await _events(feed):
                        if event.kind == "put":
                            picture.put(event.kv)
                        else:
                            picture.delete(event.kv.key)
        except (Compacted, EtcdUnavailable):
            await asyncio.sleep(_PAUSE_S)


class _Patience:
    """How long a checkpoint has not come, or no worker has been alive to do what was asked."""

    def __init__(self, client: Client, monotonic: Callable[[], float]) -> None:
        self._client = client
        self._monotonic = monotonic
        self._looked_s: float | None = None
        self._hopeless_since_s: float | None = None
        self._alone_since_s: float | None = None

    async def look(self, picture: Picture, stand: Stand) -> None:
        """Once a second: whether any worker is registered, and how far the ranks are that are to save."""
        now = self._monotonic()
        if self._looked_s is not None and now - self._looked_s < _LOOK_S:
            return
        self._looked_s = now
        keys = picture.keys
        alive = bool((await self._client.range(keys.members, limit=1, keys_only=True)).kvs)
        self._alone_since_s = None if alive else self._alone_since_s or now
        if stand.stage == "saving":
            listing = await self._client.range(keys.metrics, limit=_RANKS_LOOKED_AT)
            picture.metrics.clear()
            picture.put_all(listing.kvs)

    def nobody_is_alive(self) -> bool:
        return self._alone_since_s is not None and self._monotonic() - self._alone_since_s >= _ALONE_S

    def ended(self, stand: Stand, picture: Picture, wish: Wish[object]) -> Stand:
        """The stand, or that it is over: what it waits for does not come."""
        if not wish.is_hopeless(picture, stand):
            self._hopeless_since_s = None
            return stand
        now = self._monotonic()
        self._hopeless_since_s = now if self._hopeless_since_s is None else self._hopeless_since_s
        over = now - self._hopeless_since_s >= _HOPELESS_S
        return replace(stand, stage="done", outcome="unsaved") if over else stand


async def _events(feed: Feed) -> list[Event]:
    """What has happened in the next second; that may be nothing."""
    try:
        async with asyncio.timeout(_LOOK_S):
            return await feed.next()
    except TimeoutError:
        return []


async def _watch_answers(client: Client, feed: Feed, picture: Picture, wish: Wish[object]) -> None:
    """Follow the acks and receipts of the newest attempt: as they are now, then every further one."""
    number = newest_attempt(picture, wish)
    if number is None:
        return
    prefixes = (f"{picture.keys.acks}{number}/", picture.keys.receipts_of(number))
    if not feed.watches(prefixes[0]):
        await load_receipts(client, picture, (number,), picture.revision)
        for prefix in prefixes:
            feed.add(prefix, picture.revision + 1)


def _progress(stand: Stand) -> Progress:
    return Progress(
        stage=stand.stage,
        plan=stand.plan,
        gate=stand.gate,
        attempt=stand.attempt,
        armed=stand.armed,
        applied=stand.applied,
        ranks=stand.ranks,
        sentence=describe(stand),
    )


async def _timed_out(
    client: Client, keys: Keys, wish: Wish[object], last: Stand | None, timeout_s: float
) -> ReceiptTimeout:
    """The error, with the ranks that are missing if etcd says so at once."""
    far = how_far(last) if last else "etcd did not say how far it got"
    hint = ""
    try:
        picture = await asyncio.wait_for(load(client, keys, members=True), _LAST_LOOK_S)
    except Exception:  # noqa: BLE001 - the time-out is the news; why the hint is not there is not
        picture = None
    if picture is not None:
        missing = picture.ranks_missing()
        if picture.live and missing:
            hint = f"; {counted(len(missing), 'rank')} missing: {format_ranks(missing)}"
        elif not picture.live:
            hint = "; no worker of the run is alive"
    short = "written, but not applied everywhere" if last is None or last.stage != "saving" else "done, but not saved"
    return ReceiptTimeout(f"{wish.what}: {short} within {timeout_s:g} s: {far}{hint}. {wish.unfinished(last)}")
