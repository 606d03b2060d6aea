"""Following a change from its write to its receipt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from instep.control._change import Written
from instep.control._facts import Facts, ValueChange
from instep.control._feed import Feed
from instep.control._load import RECEIPTS_READ, load, load_receipts
from instep.control._picture import Picture
from instep.control._stand import DOUBTFUL_OUTCOMES, Outcome, Stand, describe, how_far, stand_of
from instep.control._text import counted, format_changes
from instep.coordination.keys import Keys
from instep.coordination.records import format_ranks
from instep.errors import ChangeRejected, Compacted, EtcdUnavailable, ReceiptTimeout
from instep.etcd import Client

_ATTEMPTS_READ = 40
_LAST_LOOK_S = 2.0
_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Progress(Facts):
    """One move of a change towards its receipt."""

    stage: str
    plan: int | None
    gate: int | None
    attempt: int
    armed: int
    applied: int
    ranks: int
    sentence: str


@dataclass(frozen=True, slots=True)
class ChangeReceipt(Facts):
    """What became of a change. `outcome` is one of `Outcome`, rejected excepted: that is raised.

    `step` is the first step run with the new values, the same on all ranks; None where no plan was needed.
    `took_s` is from before the write until the last answer was seen here.
    """

    outcome: Outcome
    changes: tuple[ValueChange, ...]
    plan: int | None
    attempts: int
    step: int | None
    armed: int
    applied: int
    ranks: int
    view: int | None
    took_s: float
    sentence: str

    @property
    def holds(self) -> bool:
        """True when the values hold on every rank."""
        return self.outcome in ("applied", "started", "already")


async def follow(
    client: Client,
    keys: Keys,
    written: Written,
    timeout_s: float,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Progress | ChangeReceipt]:
    """What happens to a change: Progress as often as it moves, then one ChangeReceipt, and the end.

    Raises ChangeRejected when the run refuses it, and ReceiptTimeout, which says how far it got, after
    `timeout_s` seconds; the change then stays desired. etcd trouble is ridden out until then. Close it
    (`contextlib.aclosing`) when you leave before its end.
    """
    deadline = monotonic() + timeout_s
    last: Stand | None = None
    async with aclosing(_stands(client, keys, written)) as stands:
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - monotonic())):
                    picture, stand = await anext(stands)
            except TimeoutError:
                raise await _timed_out(client, keys, written, last, timeout_s) from None
            if stand == last:
                continue
            last = stand
            if stand.outcome == "rejected":
                raise _rejected(written, stand)
            if stand.outcome is not None:
                yield _receipt(picture, written, stand, max(0.0, monotonic() - written.asked_at_s))
                return
            yield _progress(stand)


async def wait(client: Client, keys: Keys, written: Written, timeout_s: float) -> ChangeReceipt:
    """As `follow`, for who wants the end alone."""
    async with aclosing(follow(client, keys, written, timeout_s)) as moves:
        async for move in moves:
            if isinstance(move, ChangeReceipt):
                return move
    raise AssertionError("following ends with a receipt or an error")


async def _stands(client: Client, keys: Keys, written: Written) -> AsyncGenerator[tuple[Picture, Stand]]:
    """Stands without end, each from a picture kept up to date; begun anew when history was compacted."""
    while True:
        try:
            picture = await load(client, keys, plans=_ATTEMPTS_READ, receipts=RECEIPTS_READ)
            yield picture, stand_of(picture, written)
            async with Feed(client) as feed:
                start = picture.revision + 1
                for prefix in (keys.state, keys.config, keys.left):
                    feed.add(prefix, start)
                while True:
                    await _watch_answers(client, feed, picture, written)
                    stand = stand_of(picture, written)
                    if stand.outcome in DOUBTFUL_OUTCOMES:
                        break
                    yield picture, stand
                    for event in await feed.next():
                        if event.kind == "put":
                            picture.put(event.kv)
                        else:
                            picture.delete(event.kv.key)
        except Compacted:
            continue
        except EtcdUnavailable:
            await asyncio.sleep(_PAUSE_S)


async def _watch_answers(client: Client, feed: Feed, picture: Picture, written: Written) -> None:
    """Follow the acks and receipts of the newest attempt: as they are now, then every further one."""
    attempts = [plan.number for plan in picture.plans.values() if plan.revision == written.revision]
    if not attempts:
        return
    number = max(attempts)
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


def _receipt(picture: Picture, written: Written, stand: Stand, took_s: float) -> ChangeReceipt:
    changes = _changes(picture, written, stand)
    assert stand.outcome is not None
    return ChangeReceipt(
        outcome=stand.outcome,
        changes=changes,
        plan=stand.plan,
        attempts=stand.attempt,
        step=stand.steps[0] if stand.steps else None,
        armed=stand.armed,
        applied=stand.applied,
        ranks=stand.ranks,
        view=stand.view,
        took_s=round(took_s, 3),
        sentence=receipt_sentence(changes, stand, took_s),
    )


def receipt_sentence(changes: tuple[ValueChange, ...], stand: Stand, took_s: float) -> str:
    """`lr 3e-4 → 1e-4: requested, armed on 8/8 ranks, applied at step 12341 on 8/8, 0.21 s`."""
    what, ranks = format_changes(changes), stand.ranks
    if stand.outcome == "applied":
        at = " and ".join(map(str, stand.steps[:4]))
        again = f" (attempt {stand.attempt})" if stand.attempt > 1 else ""
        return (
            f"{what}: requested, armed on {stand.armed}/{ranks} ranks, "
            f"applied at step {at} on {stand.applied}/{ranks}, {took_s:.2f} s{again}"
        )
    if stand.outcome == "started":
        return f"{what}: requested, view {stand.view} started with it on {stand.applied}/{ranks} ranks, {took_s:.2f} s"
    if stand.outcome == "already":
        return f"{what}: every rank has it already, nothing to apply"
    if stand.outcome == "superseded":
        return f"{what}: not applied, a later change of the same hyperparameters took its place"
    return f"{what}: not applied, the run ended first; its next start takes it"


def _changes(picture: Picture, written: Written, stand: Stand) -> tuple[ValueChange, ...]:
    """The written changes, `before` as the plan says it: another change may have come between."""
    plan = picture.plans.get(stand.plan) if stand.plan is not None else None
    if plan is None or stand.outcome != "applied":
        return written.changes
    return tuple(
        ValueChange(
            change.name, plan.previous.get(change.name), change.after, plan.previous.get(change.name) is not None
        )
        if change.name in plan.values
        else change
        for change in written.changes
    )


def _rejected(written: Written, stand: Stand) -> ChangeRejected:
    what = format_changes(written.changes)
    return ChangeRejected(
        f"{what}: rejected by the run, the agreed values are unchanged: {stand.detail}",
        problems=dict.fromkeys(written.values, stand.detail or ""),
    )


async def _timed_out(
    client: Client, keys: Keys, written: Written, last: Stand | None, timeout_s: float
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
    return ReceiptTimeout(
        f"{format_changes(written.changes)}: written, but not applied everywhere within {timeout_s:g} s: {far}{hint}. "
        "It stays desired."
    )
