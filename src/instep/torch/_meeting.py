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

FIRST_LOOK_S: Final = 0.005
LONGEST_LOOK_S: Final = 0.2
"""All but one are there as a rule; where one is not, hundreds must not ask a store a hundred times a second."""
ARRIVED: Final = "arrived"
VERDICT: Final = "verdict"
GO: Final = "go"
VAIN: Final = "vain"


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


def meet(store: PrefixStore, world_size: int, *, in_vain: Callable[[], bool], timeout_s: float) -> bool:
    """Waits until all nodes of the round have come here; False when that is in vain: `in_vain` says so, the store's
    host has died, or `timeout_s` seconds have passed. torchrun's agent, which goes on from here, has no way back.

    Promise: True for all or for none, as long as the store lives: the first verdict counts, whoever gives it.
    """
    deadline = time.monotonic() + timeout_s
    try:
        if store.add(ARRIVED, 1) >= world_size:
            return _judged(store, GO)
        look_s = FIRST_LOOK_S
        while not store.check([VERDICT]):
            if in_vain() or time.monotonic() > deadline:
                return _judged(store, VAIN)
            time.sleep(look_s)
            look_s = min(LONGEST_LOOK_S, look_s * 1.5)
        return _judged(store, VAIN)
    except DistError:
        return False


def _judged(store: PrefixStore, verdict: str) -> bool:
    """Whether the nodes go on: `verdict` counts where there is none yet."""
    return bool(store.compare_set(VERDICT, "", verdict) == GO.encode())
