"""The TCPStore of a round: on the agent of group rank 0, and new for each round, so it has no data of a dead one."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from torch.distributed import (  # type: ignore[attr-defined]  # re-exported, but not by name
    DistError,
    DistStoreError,
    PrefixStore,
    Store,
    TCPStore,
)

from instep.rendezvous.records import Address

log = logging.getLogger("instep")

T = TypeVar("T")

PREFIX: Final = "instep/agents"
ROLES: Final = "torchelastic/role_info/"
RANKS: Final = "torchelastic/assigned_ranks/"
FINISHED: Final = "torchelastic/agent/terminal_state/num_members"
"""torchrun's own key names. If torchrun renames them, AgentsStore is a plain store: safe, but agents may exit."""
ROLES_POLL_S: Final = 0.01
EXIT_POLL_S: Final = 0.1
ANSWER_S: Final = 1.0
FIRST_POLL_S: Final = 0.005
LONGEST_POLL_S: Final = 0.2
"""Usually the others arrive at once. If not, hundreds of nodes must not poll the store a hundred times per second."""
ARRIVED: Final = "arrived"
VERDICT: Final = "verdict"
GO: Final = "go"
GIVE_UP: Final = "vain"
SLACK_S: Final = 1.0
"""Added to a limit that the call itself keeps unless the host of the store is frozen."""


def open_store(host: str, read_s: float) -> TCPStore:
    """Serves a new store on a free port, on all interfaces. Raises DistError if `host` is not this machine."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=read_s))


def connect_store(address: Address, connect_s: float, read_s: float) -> TCPStore:
    """Connects to a store. Raises DistError if that takes more than `connect_s` seconds."""

    def reached() -> TCPStore:
        limit = timedelta(seconds=connect_s)
        return TCPStore(address.host, address.port, is_master=False, wait_for_workers=False, timeout=limit)

    store = call_with_timeout(reached, connect_s + SLACK_S, f"the store at {address.host}:{address.port}")
    store.set_timeout(timedelta(seconds=read_s))
    return store


def await_all_nodes(store: PrefixStore, world_size: int, *, is_over: Callable[[], bool], timeout_s: float) -> bool:
    """Waits until all nodes of the round have arrived. False if `is_over` returns True, the host of the store dies, or
    `timeout_s` seconds pass. After a True, torchrun's agent cannot go back.

    Promise: the result is the same on all nodes while the store lives: the first verdict counts.
    """
    try:
        return call_with_timeout(
            lambda: _arrive(store, world_size, is_over, timeout_s), timeout_s + SLACK_S, "the round's store"
        )
    except DistError:
        return False


def _arrive(store: PrefixStore, world_size: int, is_over: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    if store.add(ARRIVED, 1) >= world_size:
        # After the deadline, the caller has given up on this call.
        return _decide(store, GO if time.monotonic() <= deadline else GIVE_UP)
    poll_s = FIRST_POLL_S
    while not store.check([VERDICT]):
        if is_over() or time.monotonic() > deadline:
            break
        time.sleep(poll_s)
        poll_s = min(LONGEST_POLL_S, poll_s * 1.5)
    return _decide(store, GIVE_UP)


def _decide(store: PrefixStore, verdict: str) -> bool:
    """Whether the nodes proceed. Sets `verdict` if there is none yet."""
    return bool(store.compare_set(VERDICT, "", verdict) == GO.encode())


def call_with_timeout(call: Callable[[], T], limit_s: float, what: str) -> T:
    """Returns or raises what `call` does. Raises DistStoreError if it has not returned within `limit_s` seconds.

    torch's store calls may never return: a store's host may freeze while its kernel keeps the connections. The call
    then stays in a daemon thread, and its store must not be used any more, because that would wait for the thread.
    Unlike in the call itself, signals are handled meanwhile. A caller that polls uses one thread for all of its calls.
    """
    try:
        thread = _idle.pop()
    except IndexError:
        thread = _CallThread()
    done = thread.start_call(call)
    try:
        return done.result(limit_s)
    except TimeoutError:
        if done.done():  # raised by the call itself
            raise
        raise DistStoreError(f"{what} has not answered in {limit_s:g} s: its host may be frozen") from None
    finally:
        if done.done():
            _idle.append(thread)
        else:
            thread.end_after_call()


class _CallThread:
    """A daemon thread that runs one call after the other."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="instep-store", daemon=True).start()

    def start_call(self, call: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()
        self._calls.put((call, done))
        return done

    def end_after_call(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, done = item
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  # raised in the caller
                done.set_exception(error)
            else:
                done.set_result(result)
            del item, call, done  # an idle thread must not keep a store alive


_idle: list[_CallThread] = []
"""Threads without a call: as many as there were simultaneous calls."""
os.register_at_fork(after_in_child=_idle.clear)  # a child has none of its parent's threads


class AgentsStore(PrefixStore):
    """The store in which torchrun's agents exchange their roles before they start workers.

    Promise: if a node dies after all nodes have met and before all agents know the ranks of their workers, the other
    agents do not exit. They get ranks as if all nodes were like their own, and `is_lost` says to leave the round at
    once.

    Limit: their workers start for a moment; the world stays incomplete, because one of its ranks is dead. `timeout_s`
    is how long a node may take; a node that is frozen for longer counts as dead.
    """

    def __init__(self, store: Store, rank: int, world_size: int, *, timeout_s: float) -> None:
        super().__init__(PREFIX, store)
        self._rank = rank
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._role = b"{}"
        self.is_lost = False

    def set(self, key: str, value: Any) -> None:
        if key.startswith(ROLES):
            self._role = value
            self._try(lambda: super(AgentsStore, self).set(key, value))
        else:
            super().set(key, value)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if not keys or not keys[0].startswith(ROLES):
            return super().multi_get(keys)
        found: list[bytes] | None = self._wait_and_read(keys, lambda: super(AgentsStore, self).multi_get(keys))
        return found if found is not None else [self._role] * len(keys)

    def multi_set(self, keys: list[str], values: list[Any]) -> None:
        """Does not write guessed ranks: a node that is only late must not complete a world with them."""
        if not (self.is_lost and keys and keys[0].startswith(RANKS)):
            super().multi_set(keys, values)  # type: ignore[misc]  # missing in the stubs

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """torchrun's exit barrier waits here for minutes. Unlike torch's own wait, this one handles signals
        meanwhile."""
        deadline = time.monotonic() + (timeout or self.timeout).total_seconds()  # type: ignore[attr-defined]  # missing in the stubs
        while not call_with_timeout(lambda: self.check(keys), self._timeout_s, "the agents' store"):
            if time.monotonic() > deadline:
                raise DistStoreError(f"{', '.join(keys)} were not set in time")
            time.sleep(EXIT_POLL_S)

    def get(self, key: str) -> bytes:
        if not key.startswith(RANKS):
            return super().get(key)
        found: bytes | None = self._wait_and_read([key], lambda: super(AgentsStore, self).get(key))
        return found if found is not None else self._guessed_ranks()

    def add(self, key: str, amount: int) -> int:
        """The first call of torchrun's exit barrier."""
        number: int = call_with_timeout(
            lambda: super(AgentsStore, self).add(key, amount), self._timeout_s, "the agents' store"
        )
        return number

    @property
    def is_ending(self) -> bool:
        """Whether the workers of some node have finished: it waits in the exit barrier and joins no further round.
        False if the store does not answer within a second; it is useless then."""
        try:
            return bool(call_with_timeout(lambda: self.check([FINISHED]), ANSWER_S, "the agents' store"))
        except DistError:
            return False

    def _wait_and_read(self, keys: list[str], read: Callable[[], Any]) -> Any:
        """The result of `read` when all keys are there; None if the round is lost."""
        deadline = time.monotonic() + self._timeout_s
        while not self.is_lost and not self._try(lambda: self.check(keys)):
            if time.monotonic() > deadline:
                self._mark_lost(f"{keys[-1]} was not set within {self._timeout_s:g} s")
            time.sleep(ROLES_POLL_S)
        return None if self.is_lost else self._try(read)

    def _try(self, act: Callable[[], Any]) -> Any:
        if self.is_lost:
            return None
        try:
            return call_with_timeout(act, self._timeout_s, "the agents' store")
        except DistError as error:
            self._mark_lost(str(error))
            return None

    def _mark_lost(self, why: str) -> None:
        self.is_lost = True
        log.warning("a node died just before the workers started: joining the next round (%s)", why)

    def _guessed_ranks(self) -> bytes:
        """The ranks that torchrun would assign if all nodes had the same number of workers, of one role."""
        local = int(json.loads(self._role).get("local_world_size", 1))
        first, size = self._rank * local, self._world_size * local
        return json.dumps([first, size, first, size]).encode()
