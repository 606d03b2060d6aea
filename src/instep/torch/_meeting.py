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

LOOK_S: Final = 0.2
PREFIX: Final = "instep/agents"
ARRIVED: Final = "arrived"
ALL_THERE: Final = "all-there"


def open_store(host: str, read_s: float) -> TCPStore:
    """Serves a new store on a free port of all interfaces. Raises DistError when `host` does not lead to us."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=read_s))


def reach_store(address: Address, connect_s: float, read_s: float) -> TCPStore:
    """Raises DistError when it is not reached in `connect_s` seconds. A signal is heard only after that."""
    store = TCPStore(
        address.host,
        address.port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=connect_s),
    )
    store.set_timeout(timedelta(seconds=read_s))
    return store


def of_agents(store: TCPStore) -> PrefixStore:
    """The part of it that torchrun's agents use; the rest is for their workers."""
    return PrefixStore(PREFIX, store)


def meet(store: PrefixStore, world_size: int, *, in_vain: Callable[[], bool], timeout_s: float) -> bool:
    """Waits until all nodes of the round have come here; False when that is in vain: `in_vain` says so, the store's
    host has died, or `timeout_s` seconds have passed. torchrun's agent, which goes on from here, has no way back.
    """
    deadline = time.monotonic() + timeout_s
    try:
        if store.add(ARRIVED, 1) >= world_size:
            store.set(ALL_THERE, "1")
        while not _has_come(store):
            if in_vain() or time.monotonic() > deadline:
                return False
    except DistError:
        return False
    return True


def _has_come(store: PrefixStore) -> bool:
    try:
        store.wait([ALL_THERE], timedelta(seconds=LOOK_S))
    except DistError as error:
        if "imeout" not in str(error) and "imed out" not in str(error):
            raise
        return False
    return True
