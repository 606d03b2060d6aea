"""The coordinator: the oldest candidate carries out what `decision` returns, each action as one guarded transaction."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from instep.errors import InstepError
from instep.etcd import Client, Compare, Op
from instep.protocol.keys import last_part
from instep.recipes.election import Election
from instep.recipes.fence import Fence
from instep.recipes.informer import Informer
from instep.recipes.queue import GONE
from instep.recipes.retry import SERVICE, Retry
from instep.recipes.session import LinkState, Session
from instep.rendezvous.decision import (
    RefuseNode,
    RegisteredNode,
    RendezvousAction,
    RendezvousSituation,
    decide,
    round_status,
)
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Closed, Refusal, Registration, Round
from instep.tasks import first_of

log = logging.getLogger("instep")

REFUSED_S: Final = 0.2
"""Pause after a transaction that etcd refused, while the informer catches up."""
MOST_FORGOTTEN: Final = 60
"""Departures that one transaction deletes; etcd allows 128 operations."""


class Coordinator:
    """Promise: while `run` runs and this node is the oldest candidate, it forms every round that is due; etcd refuses
    its writes once another node coordinates. Limit: each coordinator times the last call with its own clock.

    `ttl_s` is the TTL of the nodes' leases: for that long after a problem with etcd, an absent node does not count as
    dead.
    """

    def __init__(
        self,
        client: Client,
        session: Session,
        keys: RendezvousKeys,
        name: str,
        *,
        ttl_s: float,
        last_call_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._session = session
        self._keys = keys
        self._name = name
        self._election = Election(client, session, keys.election)
        self._moved = asyncio.Event()
        self._ttl_s = ttl_s
        self._last_call_s = last_call_s
        self._clock = clock
        self._undisturbed_since = clock()
        self._called_at: float | None = None
        self._held = False

    def __repr__(self) -> str:
        return f"Coordinator({self._name}, {self._election!r})"

    def on_link(self, link: LinkState) -> None:
        """Call it at each change of the session's link."""
        self._undisturbed_since = self._clock()
        self._moved.set()

    def hold(self, held: bool) -> None:
        """Suspends decisions while `held`: what etcd shows may be of a history that has gone back."""
        self._held = held
        self._moved.set()

    async def run(self) -> None:
        """Coordinates whenever it is elected, until cancelled."""
        retry = Retry(SERVICE, "the rendezvous cannot be coordinated")
        while True:
            try:
                fence = await self._election.campaign(self._name)
                retry.succeeded()
                await first_of(self._coordinate(fence), self._election.lost(fence))
            except InstepError as error:
                await retry.failed(error)

    async def _coordinate(self, fence: Fence) -> None:
        self._called_at = None
        informer = Informer(self._client, self._keys.root, lambda events: self._moved.set())
        await first_of(informer.run(), self._serve(informer, fence))

    async def _serve(self, informer: Informer, fence: Fence) -> None:
        await informer.wait_listed()
        retry = Retry(SERVICE, "a step of the rendezvous waits")
        while True:
            self._moved.clear()
            situation = self._timed(situation_of(informer, self._keys))
            action = decide(situation) if not self._held else None
            pause_s = self._pause_s(situation) if action is None else REFUSED_S
            try:
                if action is not None and await self._carry_out(action, informer, fence):
                    retry.succeeded()
                    continue
            except InstepError as error:
                pause_s = retry.pause_s(error)
            await self._wait(pause_s)

    async def _wait(self, pause_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._moved.wait()

    def _timed(self, situation: RendezvousSituation) -> RendezvousSituation:
        now = self._clock()
        etcd_stable = self._session.link == "connected" and now - self._undisturbed_since >= self._ttl_s
        situation = replace(situation, etcd_stable=etcd_stable)
        if not round_status(situation).is_last_call:
            self._called_at = None
        elif self._called_at is None:
            self._called_at = now
        called = self._called_at is not None and now - self._called_at >= self._last_call_s
        return replace(situation, last_call_over=called)

    def _pause_s(self, situation: RendezvousSituation) -> float | None:
        """The time until the decision could change without an event; None if only an event can change it."""
        pauses = []
        if self._called_at is not None and not situation.last_call_over:
            pauses.append(self._called_at + self._last_call_s - self._clock())
        if round_status(situation).waits_for_absent and self._session.link == "connected":
            pauses.append(self._undisturbed_since + self._ttl_s - self._clock())
        return max(0.0, min(pauses)) if pauses else None

    async def _carry_out(self, action: RendezvousAction, informer: Informer, fence: Fence) -> bool:
        """Whether etcd accepted it. It refuses if the informer lags, or if the run was just closed."""
        result = await self._client.txn(
            [fence.compare(), *(unchanged(informer, key) for key in (self._keys.round, self._keys.closed))],
            operations(action, self._keys),
        )
        if result.succeeded:
            log.debug("rendezvous: %s", action)
            await informer.wait_revision(result.revision, 1.0)
        return result.succeeded


def situation_of(informer: Informer, keys: RendezvousKeys) -> RendezvousSituation:
    """The situation by the keys alone, without the clocks."""
    round_, closed = informer.get(keys.round), informer.get(keys.closed)
    known = Round.decode_or_none(round_.value) if round_ is not None else None
    there = [item for item in informer.under(keys.nodes) if not item.key.startswith(f"{keys.nodes}{GONE}")]
    read = [(item, Registration.decode_or_none(item.value)) for item in there]
    return RendezvousSituation(
        nodes=tuple(RegisteredNode(last_part(item.key), item.create_revision, said) for item, said in read if said),
        unreadable=frozenset(last_part(item.key) for item, said in read if said is None),
        round=known,
        closed=Closed.decode_or_none(closed.value) if closed is not None else None,
        gone=frozenset(last_part(item.key) for item in informer.under(keys.gone)),
        refused=frozenset(last_part(item.key) for item in informer.under(keys.refused(""))),
        readable=round_ is None or known is not None,
    )


def operations(action: RendezvousAction, keys: RendezvousKeys) -> tuple[Op, ...]:
    """The operations of an action."""
    if isinstance(action, RefuseNode):
        return (Op.put(keys.refused(action.node), Refusal(reason=action.reason).encode()),)
    forgotten = (
        Op.delete(key) for node in action.forget[:MOST_FORGOTTEN] for key in (keys.gone_of(node), keys.refused(node))
    )
    return (Op.put(keys.round, action.round.encode()), *forgotten)


def unchanged(informer: Informer, key: str) -> Compare:
    """A comparison that holds while a key is as the informer shows it."""
    known = informer.get(key)
    return Compare.mod_revision(key, "==", known.mod_revision if known is not None else 0)
