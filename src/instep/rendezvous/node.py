"""One torchrun agent in the rendezvous: it asks for a seat, waits for it, and notices when to ask again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from instep.errors import InstepError, JoinRefused, JoinTimeout, RunClosed
from instep.etcd import Client, Compare, Event, Op
from instep.outage import Outage
from instep.recipes.block import TaskBlock, ended
from instep.recipes.group import Group
from instep.recipes.informer import Informer
from instep.recipes.retry import NEXT_LEASE, SERVICE, Retry
from instep.recipes.session import LinkState, Session
from instep.rendezvous.coordinator import REFUSED_S, Coordinator, unchanged
from instep.rendezvous.decision import epoch_of, lost_close, lost_round
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import (
    Address,
    Cause,
    Closed,
    Departure,
    Limits,
    Refusal,
    Registration,
    Round,
)
from instep.tasks import cancelled, first_of

log = logging.getLogger("instep")

LEAVE_S: Final = 2.0
"""Upper bound of a clean leave; after that the end of the lease shows that the node is gone."""
REGISTER_S: Final = 3600.0
"""Upper bound of a registration; the caller of `seat` sets a lower one."""


@dataclass(frozen=True, slots=True)
class KnownRendezvous:
    """What a node knows of its rendezvous, at a moment in the past."""

    round: Round | None = None
    readable: bool = True
    closed: Closed | None = None
    refusal: str | None = None


class RendezvousNode(TaskBlock):
    """Promise: inside its `async with` block the node is registered while it asks or runs, through outages and lost
    leases; `seat` returns each round that includes it; and it coordinates if it is the oldest candidate. If etcd's
    history goes back, the newest round that the node knows is written back before it acts on what etcd shows.

    `known` and `is_left_behind` read memory only and are safe from any thread. `ttl_s` (whole seconds) is how long a
    dead node counts as alive, and how long an outage of etcd may last before the node has to register again.
    """

    def __init__(
        self,
        client: Client,
        keys: RendezvousKeys,
        limits: Limits,
        *,
        host: str,
        pid: int,
        ttl_s: int,
        last_call_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = secrets.token_hex(6)
        self.known = KnownRendezvous()
        self.left_behind_at = 0.0
        """When `is_left_behind` last became true, by the clock: at about the same moment on all nodes."""
        self._client = client
        self._keys = keys
        self._limits = limits
        self._host = host
        self._pid = pid
        self._session = Session(client, ttl_s=ttl_s, on_link=self._on_link, clock=clock)
        self._group = Group(client, self._session, keys.nodes)
        self._informer = Informer(client, keys.state, self._take)
        self._coordinator = Coordinator(
            client, self._session, keys, self.name, ttl_s=ttl_s, last_call_s=last_call_s, clock=clock
        )
        self._moved = asyncio.Event()
        self._epoch = 0
        self._round = 0
        self._seated_in: Round | None = None
        """The round of the last seat."""
        self._history_changed = False
        """Whether etcd holds another history than that of `known`, and the two have not been compared yet."""
        self._writes_back = False
        self._saying: Registration | None = None
        self._has_finished = False
        self._clock = clock

    def __repr__(self) -> str:
        return f"RendezvousNode({self.name} of {self._keys.run}, round {self._round}, epoch {self._epoch})"

    # -- from memory ------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether the run of this node has ended."""
        closed = self.known.closed
        return self._has_finished or (closed is not None and 0 < self._epoch <= closed.epoch)

    @property
    def is_left_behind(self) -> bool:
        """Whether the round of this node is over or is formed again: it has to ask for the next one."""
        current = self.known.round
        if current is None or self._round == 0:
            return False
        if current.number > self._round or current.epoch > self._epoch:
            return True
        return current.number == self._round and current.wanted and not self.is_closed

    @property
    def is_in_current_round(self) -> bool:
        """Whether the current round is that of this node's last seat, even if it is formed again."""
        current = self.known.round
        return current is not None and current.number == self._round

    @property
    def was_seated(self) -> bool:
        """Whether this node has had a seat."""
        return self._round > 0

    @property
    def is_spare(self) -> bool:
        """Whether this node waits because the current round is full."""
        current = self.known.round
        return (
            current is not None
            and current.epoch == self._epoch
            and current.rank_of(self.name) is None
            and len(current.seats) >= current.limits.max_nodes
        )

    # -- actions ----------------------------------------------------------------------------------------------------

    async def seat(self, store: Address, *, cause: Cause, timeout_s: float) -> Round:
        """Asks for a seat in the next round and waits for a round that includes this node. `store` is the store that
        this node offers. A spare waits as long as the round is full.

        Raises JoinTimeout after `timeout_s` seconds, RunClosed if the run has ended, JoinRefused with the reason if the
        node cannot take part, and what the client raises if waiting does not help. The request is then withdrawn.
        """
        self._epoch = self._epoch or epoch_of(self.known.round, self.known.closed)
        registration = Registration(
            epoch=self._epoch,
            host=self._host,
            pid=self._pid,
            limits=self._limits,
            round=self._round,
            asks=True,
            cause=cause,
            store=store,
        )
        try:
            found = await self._seated(registration, timeout_s)
        except BaseException:
            self._saying = None
            await self._group.leave()
            raise
        self._round, self._seated_in = found.number, found
        content = registration.model_copy(update={"epoch": self._epoch, "round": found.number, "asks": False})
        self._saying = content
        self._session.background_task(self._rest(content))
        return found

    async def finish(self) -> None:
        """Closes the run for all its nodes. A later run may use its id once they have left."""
        while self._history_changed:  # the epoch of this node is not known yet
            self._moved.clear()
            await self._moved.wait()
        epoch = self._epoch or epoch_of(self.known.round, self.known.closed)
        while True:
            current = await self._client.get(self._keys.closed)
            known = Closed.decode_or_none(current.value) if current is not None else None
            if known is not None and known.epoch >= epoch:
                break
            unchanged = Compare.mod_revision(self._keys.closed, "==", current.mod_revision if current else 0)
            put = Op.put(self._keys.closed, Closed(epoch=epoch, by=self._host).encode())
            if (await self._client.txn([unchanged], [put])).succeeded:
                break
        self._has_finished = True

    # -- life cycle -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Raises what the client raises if etcd cannot be reached or refuses access."""
        await self._session.__aenter__()
        try:
            return await self._enter(self._live(), self._informer.wait_listed(), f"rendezvous of {self._keys.run}")
        except BaseException:
            await self._session.close()
            raise

    async def close(self) -> None:
        """Reports the departure, in about two seconds at most: the others need not wait for the end of the lease."""
        task, self._task = self._task, None
        if task is not None:
            with contextlib.suppress(TimeoutError, InstepError):
                async with asyncio.timeout(LEAVE_S):
                    await self._announce_departure()
            await cancelled(task)
        await self._session.close()

    async def _live(self) -> None:
        end_listening = self._client.history.listen(self._on_history)
        try:
            await first_of(self._informer.run(), self._coordinator.run())
        finally:
            end_listening()

    async def _announce_departure(self) -> None:
        if self._round and not self.is_closed:  # no further round is formed in a run that has ended
            gone = Op.put(self._keys.gone_of(self.name), Departure().encode())
            await self._client.txn([], [gone, Op.delete(self._keys.refused(self.name))], timeout_s=LEAVE_S)
        await self._group.leave()

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _seated(self, registration: Registration, timeout_s: float) -> Round:
        deadline = self._clock() + timeout_s
        self._saying = registration
        await self._register(registration, deadline)
        while True:
            self._moved.clear()
            self._look_for_trouble()
            current = self.known.round
            if current is not None and current.epoch == self._epoch and current.number > self._round:
                if current.rank_of(self.name) is not None:
                    return current
                if self.is_spare:
                    deadline = self._clock() + timeout_s
            left_s = deadline - self._clock()
            if left_s <= 0:
                raise JoinTimeout(
                    f"The rendezvous of {self._keys.run} was not complete in time: start the other nodes of "
                    f"--nnodes={self._limits}, or raise join_timeout in --rdzv-conf."
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._something_new()

    async def _something_new(self) -> None:
        """Waits for an event. Raises what has ended the node's own task, because no event would come then."""
        task = self._task
        await (first_of(self._moved_once(), ended(task)) if task is not None else self._moved_once())

    async def _moved_once(self) -> None:
        await self._moved.wait()

    async def _register(self, registration: Registration, deadline: float) -> None:
        """Registers, through outages, until it succeeds or a newer registration replaces this one."""
        outage = Outage(f"{self!r} is not registered yet", level=logging.DEBUG)
        retry = Retry(NEXT_LEASE, outage, timeout_s=deadline - self._clock(), clock=self._clock)
        while self._saying is registration:
            left_s = max(0.001, deadline - self._clock())
            try:
                await self._group.join(self.name, registration.encode(), timeout_s=left_s)
                return
            except InstepError as error:
                await retry.failed(error)

    async def _rest(self, content: Registration) -> None:
        """Registers that the node no longer asks. No node waits for it: a seated node counts as running."""
        try:
            await self._register(content, self._clock() + REGISTER_S)
        except InstepError as error:
            log.warning("%r cannot register that it runs: %s", self, error)

    def _look_for_trouble(self) -> None:
        known = self.known
        if not known.readable:
            raise JoinRefused(
                f"The rendezvous of {self._keys.run} was written by another version of Instep ({self._keys.round} "
                "cannot be read): use the same version on all nodes, or another --rdzv-id."
            )
        if self.is_closed:
            by = known.closed.by if known.closed is not None else ""
            raise RunClosed(f"The run {self._keys.run} has ended: it was closed by {by or 'another node'}.")
        if known.refusal is not None:
            raise JoinRefused(f"This node cannot take part in {self._keys.run}: {known.refusal}.")

    def _on_link(self, link: LinkState) -> None:
        self._coordinator.on_link(link)
        if link == "lost" and self._round and not self._has_finished and not self._history_changed:
            log.warning("etcd unreachable: workers continue; node-failure detection is suspended")

    def _take(self, events: tuple[Event, ...]) -> None:
        if not self._history_changed:
            self._look(self._shown())
        elif self._informer.is_current and not self._writes_back:
            self._writes_back = self._session.background_task(self._write_back()) is not None

    def _shown(self) -> KnownRendezvous:
        """What etcd shows."""
        round_, closed = self._informer.get(self._keys.round), self._informer.get(self._keys.closed)
        refused = self._informer.get(self._keys.refused(self.name))
        known = Round.decode_or_none(round_.value) if round_ is not None else None
        refusal = Refusal.decode_or_none(refused.value) if refused is not None else None
        return KnownRendezvous(
            round=known,
            readable=round_ is None or known is not None,
            closed=Closed.decode_or_none(closed.value) if closed is not None else None,
            refusal=refusal.reason if refusal is not None else None,
        )

    def _look(self, shown: KnownRendezvous) -> None:
        was_left_behind = self.is_left_behind
        self.known = shown
        if shown.round is not None and 0 < self._epoch < shown.round.epoch and not self.is_closed:
            self._renumber(shown.round.epoch, self._round)  # etcd had lost it, and another node has written it back
        if self.is_left_behind and not was_left_behind:
            self.left_behind_at = self._clock()
        self._moved.set()

    # -- etcd's history goes back -------------------------------------------------------------------------------------

    def _on_history(self) -> None:
        """Ignores what etcd shows, and does not coordinate, until it has been compared with what this node knows."""
        self._history_changed = True
        self._coordinator.hold(True)

    async def _write_back(self) -> None:
        retry = Retry(SERVICE, "what etcd has lost of the rendezvous waits to be written back")
        try:
            while self._history_changed and self._informer.is_current:
                shown = self._shown()
                lost = self._lost(shown)
                if not lost:
                    self._settle(shown)
                    return
                compares = [unchanged(self._informer, key) for key in (self._keys.round, self._keys.closed)]
                try:
                    result = await self._client.txn(compares, lost)
                    await self._informer.wait_revision(result.revision, 1.0)
                    retry.succeeded()
                except InstepError as error:
                    await retry.failed(error)
                if self._lost(self._shown()):
                    await asyncio.sleep(REFUSED_S)
        finally:
            self._writes_back = False

    def _lost(self, shown: KnownRendezvous) -> list[Op]:
        """The operations that write back what `shown` lacks."""
        if not shown.readable:
            return []
        known = self.known
        round_ = lost_round(known.round, known.closed, shown.round, shown.closed)
        closed = lost_close(known.closed, shown.closed)
        ops = [Op.put(self._keys.round, round_.encode())] if round_ is not None else []
        return [*ops, *([Op.put(self._keys.closed, closed.encode())] if closed is not None else [])]

    def _settle(self, shown: KnownRendezvous) -> None:
        """Continues: etcd shows what this node knows, or a later state of it."""
        self._history_changed = False
        current, ours = shown.round, self._seated_in
        if ours is None:
            self._renumber(epoch_of(current, shown.closed) if self._epoch else 0, 0)
        elif current is not None and current.is_same_formation(ours):
            self._renumber(current.epoch, current.number)
        self._look(shown)
        if current is not None:
            follows = "this node asks for the next round" if self.is_left_behind else "the workers continue"
            log.warning(
                "etcd's history has changed (%s): it holds round %d of %s again, and %s",
                self._client.history.reason,
                current.number,
                self._keys.run,
                follows,
            )
        self._coordinator.hold(False)

    def _renumber(self, epoch: int, number: int) -> None:
        """Registers the numbers that this node's round has in this history."""
        self._epoch, self._round = epoch, number
        said = self._saying
        if said is not None and (said.epoch, said.round) != (epoch, number):
            self._saying = said.model_copy(update={"epoch": epoch, "round": number})
            self._session.background_task(self._rest(self._saying))
