"""A lock among processes, with a fencing token. The same queue as the election."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType

from instep.coordination.fence import Fence
from instep.coordination.naming import check_timeout
from instep.coordination.queue import Queue
from instep.coordination.session import Session
from instep.coordination.waiting import because
from instep.errors import InstepError, LockTimeout, SettingsError
from instep.etcd import Client
from instep.tasks import first_of

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LockStatistics:
    """Counts since the lock was made."""

    acquired: int
    released: int
    timeouts: int


class Lock:
    """One contender for the lock under `prefix`, on the session's lease; `holder` is what others read of it.

    Promise: of all contenders at most one has the oldest key, and `acquire` returns its fence while our lease was still
    valid after the last wait, first come first served. Whoever gives up leaves no key behind: it is removed within a
    second, or by the session as soon as etcd answers, at the latest with the lease.
    Limit: a lock in etcd cannot stop its holder. A process that was frozen, or whose lease ended, may go on writing
    while the next one holds the lock: guard what lies in etcd with `fence.compare()`, and have anything else refuse
    tokens lower than the highest it has seen. `held` is True only as long as our own lease holds, by the clock; it does
    not see a key deleted by hand, which `wait_lost` does. One task, one Lock object; it is not reentrant.
    """

    def __init__(
        self, client: Client, session: Session, prefix: str, *, holder: str = "", timeout_s: float = TIMEOUT_S
    ) -> None:
        self._client = client
        self._session = session
        self._queue = Queue(client, session, prefix)
        self._holder = holder
        self._timeout_s = check_timeout(timeout_s)
        self._busy = False
        self._fence: Fence | None = None
        self._lease_id = 0
        self._acquired = self._released = self._timeouts = 0

    def __repr__(self) -> str:
        return f"Lock({'held' if self.held else 'waiting' if self._busy else 'free'}, {self._queue!r})"

    def statistics(self) -> LockStatistics:
        return LockStatistics(acquired=self._acquired, released=self._released, timeouts=self._timeouts)

    @property
    def fence(self) -> Fence | None:
        """From `acquire` to `release`, also after the lease was lost."""
        return self._fence

    @property
    def held(self) -> bool:
        """Whether it was acquired and the lease that it was acquired on can still be relied on."""
        return self._fence is not None and self._session.lease_id == self._lease_id

    async def acquire(self, timeout_s: float | None = None) -> Fence:
        """Waits for our turn at most `timeout_s` (seconds; the lock's own if None), over outages and lost leases, and
        one second more to tidy up when it was in vain.

        Raises LockTimeout with who holds it, as far as is known, and with what kept etcd from saying, if that lasts.
        """
        limit_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        self._claim()
        try:
            async with asyncio.timeout(limit_s):
                return self._got(await self._queue.win(self._holder))
        except BaseException as error:
            trouble = self._queue.trouble or self._session.trouble
            await self._let_go()
            if isinstance(error, TimeoutError):
                self._timeouts += 1
                raise self._timed_out(limit_s, trouble) from trouble
            raise

    async def try_acquire(self) -> Fence | None:
        """The fence if nobody holds it or waits for it, else None; ends in the client's time-outs.

        Raises EtcdUnavailable when etcd does not say, and LeaseLost without a valid lease; nothing is left behind.
        """
        self._claim()
        try:
            fence = await self._queue.try_win(self._holder)
        except BaseException:
            await self._let_go()
            raise
        if fence is None:
            await self._let_go()
            return None
        return self._got(fence)

    async def release(self) -> None:
        """Lets the next one have it, within about a second, or by the session as soon as etcd answers."""
        if self._fence is None:
            raise SettingsError("This lock is not held: acquire it first.")
        self._released += 1
        await self._let_go()

    async def wait_lost(self) -> None:
        """Returns when it is no longer ours: its lease cannot be relied on, or its key is gone. Raises what the client
        raises when etcd cannot be asked about the key."""
        fence = self._fence
        if fence is not None:
            await first_of(self._queue.gone(fence), self._session.wait_lost(self._lease_id))

    async def __aenter__(self) -> Fence:
        return await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fence is not None:  # else it was released inside the block
            await self.release()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        if self._busy:
            raise SettingsError("This Lock object is in use already: give each task a Lock of its own.")
        self._busy = True

    def _got(self, fence: Fence) -> Fence:
        self._fence, self._lease_id = fence, self._queue.lease_id
        self._acquired += 1
        return fence

    async def _let_go(self) -> None:
        self._fence = None
        try:
            await self._queue.leave()
        finally:
            self._busy = False

    def _timed_out(self, waited_s: float, trouble: InstepError | None) -> LockTimeout:
        ahead = self._queue.ahead
        holder = ahead[0].text if ahead else ""
        who = "etcd did not say who has it"
        if ahead:
            who = f"{holder or 'somebody'} holds it, {len(ahead)} in all came first"
        return LockTimeout(
            f"The lock {self._queue.prefix} was not had in {waited_s:g} s: {who}.{because(trouble)}",
            waited_s=waited_s,
            holder=holder,
            ahead=len(ahead),
        )
