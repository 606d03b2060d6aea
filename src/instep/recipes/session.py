"""One lease with all keys attached to it. If it is lost, the session takes a new one and writes the keys again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Self, TypeAlias

from instep.errors import EtcdError, InstepError, LeaseLost, SettingsError
from instep.etcd import Client, LeaseKeeper, LeaseState, LeaseTiming
from instep.recipes.block import TaskBlock
from instep.recipes.naming import is_whole
from instep.recipes.retry import LEASE, Retry, retry_until_done
from instep.tasks import Background, all_of, cancelled, first_of

log = logging.getLogger("instep")

REVOKE_S = 1.0
CLEAN_UP_S = 1.0
"""Upper bound on cleanup after a waiter gives up; the session finishes the rest."""
REMEMBERED_LEASES = 16

LinkState: TypeAlias = LeaseState
LINK_STATES: Final[tuple[LinkState, ...]] = ("connected", "suspended", "lost")
OnLease: TypeAlias = Callable[[int], Awaitable[None]]
OnLink: TypeAlias = Callable[[LinkState], None]
OnTrouble: TypeAlias = Callable[[InstepError], None]
"""Called with the reason of each failed attempt to take a lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatistics:
    """Counts since the session was made; `background_tasks` are under way now."""

    leases: int
    losses: int
    suspensions: int
    background_tasks: int


class _Life(Enum):
    NEW = auto()
    BEGINNING = auto()
    """The first lease is being taken."""
    RUNNING = auto()
    """The first attempt is over: the lease was taken, or is being retried."""
    ENDED = auto()


class Session(TaskBlock):
    """Promise: while `lease_id` is not 0, the lease was valid a moment ago by the monotonic clock alone. Each time a
    lease is taken, the callbacks of `on_lease` and `each_lease` are awaited with its id.

    `link` is "connected"; "suspended" if no endpoint answered the last renewal but the lease is still valid by the
    local clock: stop acting as leader; or "lost" if there is no valid lease: its keys have no owner. An exception of
    a callback ends the session at its first lease; at a later lease it is logged, and another lease is taken.

    Limit: "suspended" is noticed at the next renewal, up to a third of `ttl_s` (seconds) late, "lost" at each read.
    `on_link` and `wait_link` see a state when the event loop runs, and may miss a short one. Between two leases the
    keys are gone and others may have acted on that: a former leader must win again.

    `async with Session(client)` takes the first lease or raises what the client raises. Leaving revokes it, unless etcd
    is unavailable: then its keys end with the TTL. For one event loop and one use.
    """

    def __init__(
        self,
        client: Client,
        *,
        ttl_s: int = 10,
        on_lease: OnLease | None = None,
        on_link: OnLink | None = None,
        on_trouble: OnTrouble | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not is_whole(ttl_s):
            raise SettingsError(f"A lease lasts whole seconds: pass ttl_s=10, for example, not {ttl_s!r}.")
        LeaseTiming(ttl_s)
        self._client = client
        self._ttl_s = ttl_s
        self._on_link = on_link
        self._on_trouble = on_trouble
        self._clock = clock
        self._listeners: list[OnLease] = [] if on_lease is None else [on_lease]
        self._keeper: LeaseKeeper | None = None
        self._noted: LinkState = "lost"
        self._life = _Life.NEW
        self._changed = asyncio.Event()
        self.trouble: InstepError | None = None
        """Why there is no lease; None while there is one, and before the first attempt."""
        self._had: deque[int] = deque(maxlen=REMEMBERED_LEASES)
        self._abandoned: int = 0
        self._background_tasks = Background("work left to the session")
        self._serials = itertools.count(1)
        self._leases = self._losses = self._suspensions = 0

    def __repr__(self) -> str:
        return f"Session({self._keeper or 'no lease'}, {self._leases} leases so far)"

    def statistics(self) -> SessionStatistics:
        """Counts of leases and losses. A snapshot."""
        return SessionStatistics(
            leases=self._leases,
            losses=self._losses,
            suspensions=self._suspensions,
            background_tasks=len(self._background_tasks),
        )

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def lease_id(self) -> int:
        """The lease; 0 while there is no valid one."""
        return self._keeper.lease_id if self._keeper is not None and self._keeper.valid else 0

    @property
    def valid(self) -> bool:
        """Whether the session has a lease that can be relied on."""
        return self.lease_id != 0

    @property
    def link(self) -> LinkState:
        """`connected`; `suspended` while etcd does not answer but the lease is valid; `lost` without a lease."""
        return "lost" if self._keeper is None else self._keeper.state

    @property
    def remaining_s(self) -> float:
        """For how many seconds the lease is valid without another renewal."""
        return 0.0 if self._keeper is None else self._keeper.remaining_s

    def owns(self, lease_id: int) -> bool:
        """Whether a lease is or was one of the last 16 of this session."""
        return lease_id in self._had

    async def wait_link(self, *wanted: LinkState) -> LinkState:
        """Returns the link's state once it is one of `wanted`. Raises LeaseLost if the session ends before that."""
        if not wanted or not set(wanted) <= set(LINK_STATES):
            raise SettingsError(f"{wanted!r}: pass some of {', '.join(LINK_STATES)}.")
        while (link := self.link) not in wanted:
            if self._life is _Life.ENDED:
                raise LeaseLost("The session has ended: its link stays lost.", lease_id=0)
            await self._changed.wait()
        return link

    async def wait_lease(self) -> int:
        """Returns the lease once there is one. Raises LeaseLost if the session has not started or has ended."""
        while not (lease_id := self.lease_id):
            if not self._runs:
                raise LeaseLost("The session has ended, or was not entered: there is no lease.", lease_id=0)
            await self._changed.wait()
        return lease_id

    async def wait_lost(self, lease_id: int) -> None:
        """Returns when that lease is no longer valid."""
        while lease_id and self.lease_id == lease_id:
            await self._changed.wait()

    # -- work for others --------------------------------------------------------------------------------------------

    def each_lease(self, write: OnLease) -> Callable[[], None]:
        """Awaits `write(lease_id)` for each lease taken from now on. The returned function ends that."""
        self._listeners.append(write)

        def end() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(write)

        return end

    def serial(self) -> int:
        """Returns a new number at each call: with it, the name of a key on this lease is unique."""
        return next(self._serials)

    def background_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any] | None:
        """Continues with work that no caller waits for, such as deleting a key, until the session ends. None if the
        session, and thus its keys, have ended."""
        if not self._runs:
            work.close()
            return None
        return self._background_tasks.start(work)

    async def clean_up(self, step: Callable[[], Awaitable[bool]], what: str) -> bool:
        """Repeats `step` until it returns True, and returns whether that took less than about a second. After that the
        session continues with it in the background."""
        removing = self.background_task(retry_until_done(step, what))
        if removing is None:
            return False
        done, _ = await asyncio.wait([removing], timeout=CLEAN_UP_S)
        return bool(done)

    # -- life cycle -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise SettingsError("A session is entered once: create another one.")
        return await self._enter(self.run(), self._first_lease(), "session")

    async def close(self) -> None:
        """Revokes the lease and every key attached to it."""
        if self._task is not None:
            await cancelled(self._task)

    async def run(self) -> None:
        """Keeps a lease until cancelled, then revokes it. For a caller that runs it in its own task."""
        retry = Retry(LEASE, "no lease can be obtained")
        self._enter_life(_Life.BEGINNING)
        try:
            while True:
                pause_s = LEASE.first_s
                try:
                    await self._serve_lease(retry)
                    log.warning("the lease was lost; taking a new one")
                except InstepError as error:
                    pause_s = retry.pause_s(error)
                    self.trouble = error
                    if self._on_trouble is not None:
                        self._on_trouble(error)
                    self._enter_life(_Life.RUNNING)
                except Exception:  # of a callback: only the first lease has a caller that can get it
                    if self._life is _Life.BEGINNING:
                        raise
                    log.exception("a callback failed that runs at each lease; taking a new lease")
                    pause_s = LEASE.longest_s
                await asyncio.sleep(pause_s)
        finally:
            self._enter_life(_Life.ENDED)
            await self._background_tasks.close()

    async def _first_lease(self) -> None:
        """Returns when it has been taken, or raises the reason why not."""
        while self._life is not _Life.RUNNING:
            await self._changed.wait()
        if self.trouble is not None:
            raise self.trouble

    async def _serve_lease(self, retry: Retry) -> None:
        async with LeaseKeeper(self._client, ttl_s=self._ttl_s, clock=self._clock) as keeper:
            self._had.append(keeper.lease_id)
            self._leases += 1
            self._keeper = keeper
            self._note()
            # If etcd's history changes, its keys may be lost, or restored from an older one.
            end_listening = self._client.history.listen(keeper.abandon)
            try:
                await all_of(self._hold(keeper, retry), self._follow(keeper))
            finally:
                end_listening()
                self._keeper = None
                self._note()

    async def _hold(self, keeper: LeaseKeeper, retry: Retry) -> None:
        await first_of(self._announce(keeper.lease_id), keeper.wait_lost())
        retry.succeeded()
        self.trouble = None
        self._enter_life(_Life.RUNNING)
        await self._revoke_former()
        await keeper.wait_lost()
        self._abandoned = keeper.lease_id
        self._losses += 1

    async def _announce(self, lease_id: int) -> None:
        for write in tuple(self._listeners):
            await write(lease_id)

    async def _follow(self, keeper: LeaseKeeper) -> None:
        while await keeper.wait_state_change() != "lost":
            self._note()
        self._note()

    async def _revoke_former(self) -> None:
        """Revokes a lease that was given up: etcd may hold it for longer than its TTL, which restarts when etcd changes
        its leader, and others would wait for its keys."""
        former, self._abandoned = self._abandoned, 0
        if former:
            with contextlib.suppress(EtcdError):
                await self._client.lease_revoke(former, timeout_s=REVOKE_S)

    @property
    def _runs(self) -> bool:
        return self._life in (_Life.BEGINNING, _Life.RUNNING)

    def _enter_life(self, life: _Life) -> None:
        self._life = life
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _note(self) -> None:
        link = self.link
        self._wake()
        if link == self._noted:
            return
        self._noted = link
        self._suspensions += link == "suspended"
        if self._on_link is not None:
            try:
                self._on_link(link)
            except Exception:  # an error in the callback must not end the lease
                log.exception("on_link(%r) failed", link)
