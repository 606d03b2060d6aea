"""What torch loads each time torch.distributed.elastic is imported: nothing of Instep until its handler is asked for.

The entry point `etcd3` of the group `torchrun.handlers` (torch >= 2.6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def etcd3() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Returns what makes the handler of `torchrun --rdzv-backend=etcd3`."""
    return _create_handler


def _create_handler(params: RendezvousParameters) -> RendezvousHandler:
    from instep.torch import _rendezvous

    return _rendezvous.create_handler(params)
