"""The entry point `etcd3` of the group `torchrun.handlers` (torch 2.6 and later).

torch loads it with torch.distributed.elastic, so it imports nothing of Instep until its handler is requested.
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
    """The factory of the handler for `torchrun --rdzv-backend=etcd3`."""
    return _create_handler


def _create_handler(params: RendezvousParameters) -> RendezvousHandler:
    with _without_fork_support():
        from instep.torch._rendezvous.handler import create_handler

    return create_handler(params)


@contextmanager
def _without_fork_support() -> Iterator[None]:
    """Loads gRPC without its fork support. That support crashes one in ten forked children with a segmentation fault if
    a call was in progress, and torch forks workers (start_method="fork").

    Limit: a program that has already loaded gRPC must set the variable itself.
    """
    if FORK_SUPPORT in os.environ:
        yield
        return
    os.environ[FORK_SUPPORT] = "0"
    try:
        yield
    finally:
        del os.environ[FORK_SUPPORT]
