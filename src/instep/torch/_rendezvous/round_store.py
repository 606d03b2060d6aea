"""A round's own store: on the agent that has rank 0, new for each round, so that nothing of a dead one is met in it."""

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

from torch.distributed import (  # type: ignore[attr-defined]  # re-exported, but not by name  # type: ignore[attr-defined]  # re-exported, but not by name
    DistError,
    DistStoreError,
    PrefixStore,
    Store,
    TCPStore,
)

from instep.coordination.rendezvous.records import Address

FIRST_LOOK_S: Final = 0.005
LONGEST_LOOK_S: Final = 0.2
"""All but one are there as a rule; where one is not, hundreds must not ask a store a hundred times a second."""
ARRIVED: Final = "arrived"
VERDICT: Final = "verdict"
GO: Final = "go"
VAIN: Final = "vain"
SLACK_S: Final = 1.0
"""Beyond a limit that is kept by itself as long as the store's host is not frozen."""


def open_store(host: str, read_s: float) -> TCPStore:
    """Serves a new store on a free port of all interfaces. Raises DistError when `host` does not lead to us."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=read_s))


def connect_store(address: Address, connect_s: float, read_s: float) -> TCPStore:
    """Raises DistError when it is not reached in `connect_s` seconds."""

    def reached() -> TCPStore:
        limit = timedelta(seconds=connect_s)
        return TCPStore(address.host, address.port, is_master=False, wait_for_workers=False, timeout=limit)

    store = call_with_timeout(reached, connect_s + SLACK_S, f"the store at {address.host}:{address.port}")
    store.set_timeout(timedelta(seconds=read_s))
    return store


def await_all_nodes(store: PrefixStore, world_size: int, *, is_over: Callable[[], bool], timeout_s: float) -> bool:
    """Waits until all nodes of the round have come here; False when that is in vain: `is_over` says so, the store's
    host has died, or `timeout_s` seconds have passed. torchrun's agent, which goes on from here, has no way back.

    Promise: True for all or for none, as long as the store lives: the first verdict counts, whoever gives it.
    """
    try:
        return call_with_timeout(
            lambda: _met(store, world_size, is_over, timeout_s), timeout_s + SLACK_S, "the round's store"
        )
    except DistError:
        return False


def _met(store: PrefixStore, world_size: int, is_over: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    if store.add(ARRIVED, 1) >= world_size:
        return _judged(store, GO if time.monotonic() <= deadline else VAIN)  # or we have been given up by our caller
    look_s = FIRST_LOOK_S
    while not store.check([VERDICT]):
        if is_over() or time.monotonic() > deadline:
            break
        time.sleep(look_s)
        look_s = min(LONGEST_LOOK_S, look_s * 1.5)
    return _judged(store, VAIN)


def _judged(store: PrefixStore, verdict: str) -> bool:
    """Whether the nodes go on: `verdict` counts where there is none yet."""
    return bool(store.compare_set(VERDICT, "", verdict) == GO.encode())


T = TypeVar("T")


def call_with_timeout(call: Callable[[], T], limit_s: float, what: str) -> T:
    """What `call` gives or raises; DistStoreError when it has not come back in `limit_s` seconds. It is then left to a
    thread that nobody waits for, and the store it works on must not be used any more: that would wait for the thread.

    Signals are heard meanwhile, unlike in the call itself. A caller that polls uses one thread for all its calls.
    """
    try:
        thread = _idle.pop()
    except IndexError:
        thread = _CallThread()
    done = thread.start_call(call)
    try:
        return done.result(limit_s)
    except TimeoutError:
        if done.done():  # the call's own
            raise
        raise DistStoreError(f"{what} has not answered in {limit_s:g} s: its host may be frozen") from None
    finally:
        if done.done():
            _idle.append(thread)
        else:
            thread.end_after_call()


class _CallThread:
    """A daemon thread that makes one call after the other."""

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
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the caller's
                done.set_exception(error)
            else:
                done.set_result(result)
            del item, call, done  # an idle thread must not keep a store alive


_idle: list[_CallThread] = []
"""Threads without a call: as many as there were calls at a time."""
os.register_at_fork(after_in_child=_idle.clear)  # a child has no threads but its own


log = logging.getLogger("instep")

PREFIX: Final = "instep/agents"
ROLES: Final = "torchelastic/role_info/"
RANKS: Final = "torchelastic/assigned_ranks/"
FINISHED: Final = "torchelastic/agent/terminal_state/num_members"
"""torchrun's own names, not ours. Under others this would be a plain store: safe, and an agent ends as before."""
LOOK_S: Final = 0.01
WAIT_LOOK_S: Final = 0.1
ANSWER_S: Final = 1.0


class AgentsStore(PrefixStore):
    """Promise: when a node dies after the meeting and before all agents know their workers' ranks, no other agent ends
    by that: it gets ranks as if all nodes were like its own, and `is_lost` tells that the round has to be left at once.

    Limit: its workers are started for a moment. Their world does not become complete, for a rank of it is dead.
    `timeout_s` is how long a node may take; one frozen for longer is taken for dead.
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
            self._tried(lambda: super(AgentsStore, self).set(key, value))
        else:
            super().set(key, value)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if not keys or not keys[0].startswith(ROLES):
            return super().multi_get(keys)
        found: list[bytes] | None = self._awaited(keys, lambda: super(AgentsStore, self).multi_get(keys))
        return found if found is not None else [self._role] * len(keys)

    def multi_set(self, keys: list[str], values: list[Any]) -> None:
        """Ranks that rest on a guess are kept back: no node that is only late is to make a world of them complete."""
        if not (self.is_lost and keys and keys[0].startswith(RANKS)):
            super().multi_set(keys, values)  # type: ignore[misc]  # missing in the stubs

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """torchrun waits in its exit barrier so, for minutes: signals are heard meanwhile, unlike in torch's own."""
        deadline = time.monotonic() + (timeout or self.timeout).total_seconds()  # type: ignore[attr-defined]  # missing in the stubs
        while not call_with_timeout(lambda: self.check(keys), self._timeout_s, "the agents' store"):
            if time.monotonic() > deadline:
                raise DistStoreError(f"{', '.join(keys)} did not come in time")
            time.sleep(WAIT_LOOK_S)

    def get(self, key: str) -> bytes:
        if not key.startswith(RANKS):
            return super().get(key)
        found: bytes | None = self._awaited([key], lambda: super(AgentsStore, self).get(key))
        return found if found is not None else self._guess()

    def add(self, key: str, amount: int) -> int:
        """The exit barrier begins with it."""
        number: int = call_with_timeout(
            lambda: super(AgentsStore, self).add(key, amount), self._timeout_s, "the agents' store"
        )
        return number

    @property
    def is_ending(self) -> bool:
        """Whether the workers of some node have finished: it waits in the exit barrier and comes to no further round.
        False where the store does not answer in a second; it is of no use any more then."""
        try:
            return bool(call_with_timeout(lambda: self.check([FINISHED]), ANSWER_S, "the agents' store"))
        except DistError:
            return False

    def _awaited(self, keys: list[str], read: Callable[[], Any]) -> Any:
        """What `read` gives, once all keys are there; None when that is in vain."""
        deadline = time.monotonic() + self._timeout_s
        while not self.is_lost and not self._tried(lambda: self.check(keys)):
            if time.monotonic() > deadline:
                self._lose(f"{keys[-1]} has not come in {self._timeout_s:g} s")
            time.sleep(LOOK_S)
        return None if self.is_lost else self._tried(read)

    def _tried(self, act: Callable[[], Any]) -> Any:
        if self.is_lost:
            return None
        try:
            return call_with_timeout(act, self._timeout_s, "the agents' store")
        except DistError as error:
            self._lose(str(error))
            return None

    def _lose(self, why: str) -> None:
        self.is_lost = True
        log.warning("a node has died just before the workers' start: asking for the next round (%s)", why)

    def _guess(self) -> bytes:
        """As torchrun counts where all nodes have as many workers, of one role."""
        local = int(json.loads(self._role).get("local_world_size", 1))
        first, size = self._rank * local, self._world_size * local
        return json.dumps([first, size, first, size]).encode()
