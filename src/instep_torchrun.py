"""What torch loads each time torch.distributed.elastic is imported: nothing of Instep until its handler is asked for.

The entry point `etcd3` of the group `torchrun.handlers` (torch >= 2.6).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


def etcd3() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Returns what makes the handler of `torchrun --rdzv-backend=etcd3`."""
    return _create_handler


def _create_handler(params: RendezvousParameters) -> RendezvousHandler:
    with _without_fork_support():
        from instep.torch._rendezvous.handler import create_handler

    return create_handler(params)


@contextmanager
def _without_fork_support() -> Iterator[None]:
    """gRPC, loaded inside, leaves forked children alone: what it does in them by itself ends one in ten by a
    segmentation fault when a call was under way, and torch forks workers (start_method="fork").

    Limit: a program that has loaded gRPC before has to set the variable itself.
    """
    if FORK_SUPPORT in os.environ:
        yield
        return
    os.environ[FORK_SUPPORT] = "0"
    try:
        yield
    finally:
        del os.environ[FORK_SUPPORT]
