"""A double barrier: nobody goes on before all have come, and nobody is done before all have left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from instep.coordination.barrier_scene import Entrant, Scene, Step, next_step, not_all_came, not_all_left, opened
from instep.coordination.barrier_store import BarrierStore
from instep.coordination.naming import as_prefix, check_name, check_timeout, is_whole
from instep.coordination.session import Session
from instep.coordination.waiting import PASSING, RETRY_S, insist, tidied
from instep.errors import (
    BarrierFull,
    BarrierTimeout,
    EtcdUnavailable,
    InstepError,
    LeaseLost,
    NameTaken,
    SettingsError,
)
from instep.etcd import Client
from instep.tasks import first_of

log = logging.getLogger("instep")

RECHECK_S = 1.0
"""Those who wait look again after so long, then after twice as long: who should have opened may have died."""
LONGEST_RECHECK_S = 8.0
MAX_COUNT = 2000
REMEMBERED_VISITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BarrierStatistics:
    """Counts since the barrier was made."""

    entered: int
    left: int
    timeouts: int
    refused: int


@dataclass(slots=True)
class _Visit:
    """One participant on its way in, inside, or on its way out."""

    name: str
    token: str
    """What our registrations hold, so that we know them from others."""
    lease_id: int = 0
    created: int = 0
    round: int = 0
    doubtful: bool = False
    """A create may still be on its way."""
    inside: bool = False
    given_up: bool = False
    registered: bool = False
    """Whether etcd has confirmed the registration that was asked for last."""
    scene: Scene | None = None
    trouble: InstepError | None = None
    """What was ridden out last; None once etcd has done what was asked since."""


class DoubleBarrier:
    """One participant of the barrier under `prefix` for `count` of them, on the session's lease.

    Promise: `enter` returns only when `count` participants were registered at one moment, none of which had given up;
    the first `count` by create revision are in, and one more is refused with BarrierFull. `leave` returns only when
    each of them has left or its session has ended. A time-out names who is missing and takes our own key away. When all
    have left it can be entered again.
    Limit: one whose session ends counts as having left, and may have been counted in at the moment it ended. With etcd
    away at the time-out, our key is removed by the session later; if the others were let in meanwhile they count us in,
    and as having left then. They learn of an opening at once, of the death of the one who should have opened within
    1 to 8 s. At most 2000 participants; each lists all of them a few times a round.
    """

    def __init__(
        self, client: Client, session: Session, prefix: str, count: int, names: Sequence[str] | None = None
    ) -> None:
        if not is_whole(count) or not 1 <= count <= MAX_COUNT:
            raise SettingsError(f"A barrier is for 1 to {MAX_COUNT} participants, a whole number, not {count!r}.")
        if isinstance(names, str):
            raise SettingsError(f"The names of a barrier are a list, such as ['a', 'b'], not {names!r}.")
        if names is not None and (len(names) != count or len(set(names)) != count):
            raise SettingsError(f"A barrier for {count} needs {count} different names, or none.")
        self._prefix = as_prefix(prefix)
        self._store = BarrierStore(client, self._prefix)
        self._session = session
        self._count = count
        self._names = None if names is None else tuple(check_name(name, "a participant") for name in names)
        self._visit: _Visit | None = None
        self._visits: deque[str] = deque(maxlen=REMEMBERED_VISITS)
        self._entered = self._left = self._timeouts = self._refused = 0

    def __repr__(self) -> str:
        visit = self._visit
        where = "outside" if visit is None else f"{visit.name!r} {'inside' if visit.inside else 'coming'}"
        return f"DoubleBarrier({self._prefix}, {self._count}, {where})"

    def statistics(self) -> BarrierStatistics:
        return BarrierStatistics(entered=self._entered, left=self._left, timeouts=self._timeouts, refused=self._refused)

    @property
    def inside(self) -> bool:
        """From `enter` to `leave`, as long as our lease holds."""
        visit = self._visit
        return visit is not None and visit.inside and visit.lease_id == self._session.lease_id

    # -- in ---------------------------------------------------------------------------------------------------------

    async def enter(self, name: str, timeout_s: float) -> int:
        """Waits at most `timeout_s` seconds (and one more to tidy up) until all are here; returns the round's number.

        Raises BarrierTimeout with who is missing and what kept us from registering, if anything did; BarrierFull; and
        NameTaken when another session has that name.
        """
        visit = self._begin(name, timeout_s)
        try:
            await self._come(visit, timeout_s)
        except BaseException as error:
            self._abandon(visit)  # also when the tidying up was cancelled
            self._timeouts += isinstance(error, BarrierTimeout)
            self._refused += isinstance(error, (BarrierFull, NameTaken))
            raise
        self._entered += 1
        return visit.round

    async def _come(self, visit: _Visit, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._go_in(visit)
        except TimeoutError:
            trouble = visit.trouble or self._session.trouble
            if not await self._withdraw(visit):
                raise not_all_came(
                    visit.scene,
                    self._prefix,
                    self._count,
                    self._names,
                    visit.name,
                    timeout_s,
                    registered=visit.registered,
                    trouble=trouble,
                ) from trouble
        except BaseException:
            await self._give_up(visit)
            raise

    def _abandon(self, visit: _Visit) -> None:
        """Takes no part any more; a withdrawal that found us let in at the very end begins again."""
        visit.given_up, self._visit = True, None
        if visit.inside:
            self._session.chore(insist(lambda: self._withdrawn(visit), self._called()))

    def _begin(self, name: str, timeout_s: float) -> _Visit:
        check_timeout(timeout_s)
        check_name(name, "a participant")
        if self._names is not None and name not in self._names:
            raise SettingsError(f"{name!r} is none of the barrier's participants.")
        if self._visit is not None:
            raise SettingsError("This barrier object is in use already: leave first, or make another one.")
        self._visit = _Visit(name, secrets.token_hex(8))
        self._visits.append(self._visit.token)
        return self._visit

    async def _go_in(self, visit: _Visit) -> None:
        recheck_s = RECHECK_S
        while not visit.inside:
            await self._session.wait_lease()
            try:
                waited = await self._step_in(visit, recheck_s)
            except PASSING as error:
                log.debug("the barrier %s waits for etcd: %s", self._prefix, error)
                visit.trouble = error
                await asyncio.sleep(RETRY_S)
                continue
            visit.trouble = None
            recheck_s = min(LONGEST_RECHECK_S, recheck_s * 2) if waited else RECHECK_S

    async def _step_in(self, visit: _Visit, recheck_s: float) -> bool:
        """One look and what follows from it; True when that was to wait."""
        scene = visit.scene = await self._store.look()
        present = scene.of(visit.name)
        registered = self._registered(visit, present)
        ours = present is not None and present.visit in self._visits
        match next_step(scene, self._count, visit.name, registered=registered, ours=ours):
            case Step.REGISTER:
                await self._register(visit, scene)
            case Step.OPEN:
                await self._store.write_round(scene, opened(scene, self._count))
            case Step.WAIT:
                visit.trouble = None
                await self._wait(scene, recheck_s, visit.lease_id)
                return True
            case Step.ENTERED:
                visit.inside, visit.round = True, scene.round.number
            case Step.CLEAR if present is not None:
                await self._store.remove(visit.name, present.created, scene)
            case Step.TAKEN:
                raise NameTaken(f"Another session is {visit.name!r} at the barrier {self._prefix}.", name=visit.name)
            case _:
                raise BarrierFull(f"The barrier {self._prefix} has its {self._count} already.", count=self._count)
        return False

    def _registered(self, visit: _Visit, present: Entrant | None) -> bool:
        """Whether we wait with this registration, also when the reply to its creation was lost; and on what lease."""
        if present is None or present.visit != visit.token or present.lease_id != self._session.lease_id:
            return False
        visit.created, visit.lease_id = present.created, present.lease_id
        visit.registered = True
        return True

    async def _register(self, visit: _Visit, scene: Scene) -> None:
        lease_id = self._session.lease_id
        if not lease_id:
            return
        was_doubtful, visit.doubtful = visit.doubtful, True  # also when this call is cancelled
        visit.registered = False
        try:
            visit.registered = await self._store.register(visit.name, visit.token, lease_id, scene)
        except InstepError as error:
            visit.doubtful = was_doubtful or (isinstance(error, EtcdUnavailable) and error.applied_unknown)
            raise
        visit.doubtful = was_doubtful

    async def _wait(self, scene: Scene, recheck_s: float, lease_id: int) -> None:
        """Returns when the round has been written since, our lease was lost, or after `recheck_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(recheck_s):
                waits = [self._store.written(scene)]
                if lease_id:
                    waits.append(self._session.wait_lost(lease_id))
                await first_of(*waits)

    # -- out --------------------------------------------------------------------------------------------------------

    async def leave(self, timeout_s: float) -> None:
        """Leaves, and waits at most `timeout_s` seconds until all have left.

        Raises BarrierTimeout with who is still inside, and LeaseLost when our session's lease ended meanwhile: the
        others have taken that for our leaving. Either way we are out; without etcd our key is removed later.
        """
        check_timeout(timeout_s)
        visit = self._visit
        if visit is None or not visit.inside:
            raise SettingsError("We are not inside this barrier: enter it first.")
        self._visit = None
        if visit.lease_id != self._session.lease_id:
            raise LeaseLost(
                f"The lease with which the barrier {self._prefix} was entered has ended: the others may have left.",
                lease_id=visit.lease_id,
            )
        try:
            async with asyncio.timeout(timeout_s):
                await self._go_out(visit)
        except TimeoutError:
            trouble = visit.trouble
            await self._give_up(visit)
            self._timeouts += 1
            raise not_all_left(visit.scene, self._prefix, visit.name, timeout_s, trouble) from trouble
        except BaseException:
            await self._give_up(visit)
            raise
        self._left += 1

    async def _go_out(self, visit: _Visit) -> None:
        recheck_s = RECHECK_S
        while True:
            try:
                scene = visit.scene = await self._store.look()
                if scene.round.number != visit.round:
                    return
                if any(one.name == visit.name for one in scene.inside):
                    await self._store.remove(visit.name, visit.created, None)
                elif not scene.inside:
                    if scene.round.members:
                        await self._store.write_round(scene, replace(scene.round, members=MappingProxyType({})))
                    return
                else:
                    visit.trouble = None
                    await self._wait(scene, recheck_s, 0)
                    recheck_s = min(LONGEST_RECHECK_S, recheck_s * 2)
            except PASSING as error:
                log.debug("the barrier %s waits for etcd: %s", self._prefix, error)
                visit.trouble = error
                await asyncio.sleep(RETRY_S)

    # -- giving up --------------------------------------------------------------------------------------------------

    async def _withdraw(self, visit: _Visit) -> bool:
        """Takes our registration away unless we were let in before: then True, and we are inside after all."""
        if not await tidied(self._session, lambda: self._withdrawn(visit), self._called()):
            visit.given_up = True
        return visit.inside and not visit.given_up

    async def _give_up(self, visit: _Visit) -> None:
        visit.given_up = True
        await self._withdraw(visit)

    def _called(self) -> str:
        return f"a registration at the barrier {self._prefix}"

    async def _withdrawn(self, visit: _Visit) -> bool:
        """True when nothing more is to be done: removed, or let in while the caller still takes that."""
        scene = visit.scene = await self._store.look()
        present = scene.of(visit.name)
        if present is not None and present.visit == visit.token:
            let_in = present in scene.inside
            if let_in and not visit.given_up and self._registered(visit, present):
                visit.inside, visit.round = True, scene.round.number
                return True
            return await self._store.remove(visit.name, present.created, None if let_in else scene)
        return not visit.doubtful or await self._store.write_round(scene, scene.round)
