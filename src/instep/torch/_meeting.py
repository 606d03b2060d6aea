"""A round's own store: on the agent that has rank 0, new for each round, so that nothing of a dead one is met in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from torch.distributed import (  # type: ignore[attr-defined]  # re-exported, but not by name
    DistError,
    PrefixStore,
    TCPStore,
)

from instep.coordination.rendezvous.records import Address
from instep.torch._bounded import bounded

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


def reach_store(address: Address, connect_s: float, read_s: float) -> TCPStore:
    """Raises DistError when it is not reached in `connect_s` seconds."""

    def reached() -> TCPStore:
        limit = timedelta(seconds=connect_s)
        return TCPStore(address.host, address.port, is_master=False, wait_for_workers=False, timeout=limit)

    store = bounded(reached, connect_s + SLACK_S, f"the store at {address.host}:{address.port}")
    store.set_timeout(timedelta(seconds=read_s))
    return store


def meet(store: PrefixStore, world_size: int, *, in_vain: Callable[[], bool], timeout_s: float) -> bool:
    """Waits until all nodes of the round have come here; False when that is in vain: `in_vain` says so, the store's
    host has died, or `timeout_s` seconds have passed. torchrun's agent, which goes on from here, has no way back.

    Promise: True for all or for none, as long as the store lives: the first verdict counts, whoever gives it.
    """
    try:
        return bounded(lambda: _met(store, world_size, in_vain, timeout_s), timeout_s + SLACK_S, "the round's store")
    except DistError:
        return False


def _met(store: PrefixStore, world_size: int, in_vain: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    if store.add(ARRIVED, 1) >= world_size:
        return _judged(store, GO if time.monotonic() <= deadline else VAIN)  # or we have been given up by our caller
    look_s = FIRST_LOOK_S
    while not store.check([VERDICT]):
        if in_vain() or time.monotonic() > deadline:
            break
        time.sleep(look_s)
        look_s = min(LONGEST_LOOK_S, look_s * 1.5)
    return _judged(store, VAIN)


def _judged(store: PrefixStore, verdict: str) -> bool:
    """Whether the nodes go on: `verdict` counts where there is none yet."""
    return bool(store.compare_set(VERDICT, "", verdict) == GO.encode())
