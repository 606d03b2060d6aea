"""What is written back if etcd holds another history than the nodes have seen: restored, emptied or replaced. Pure.

The nodes that train are the authority, as for values (docs/decisions/0016).
"""

from __future__ import annotations

from instep.rendezvous.decision import epoch_of
from instep.rendezvous.records import Closed, Round


def lost_round(
    known: Round | None, known_closed: Closed | None, shown: Round | None, shown_closed: Closed | None
) -> Round | None:
    """The round to write back; None if etcd shows it, or a later round of the same nodes.

    Its number and epoch are above those in etcd, which may belong to another run with the same name: no node takes it
    for a round that is over. A round of an ended epoch is only written if it is missing.
    """
    if known is None or (shown is not None and _is_known(known, shown)):
        return None
    epoch = epoch_of(shown, shown_closed)
    is_behind = shown is None or shown.number < known.number
    if known_closed is not None and known_closed.epoch >= known.epoch:
        return known if is_behind and epoch <= known_closed.epoch else None
    number = known.number if shown is None or is_behind else shown.number + 1
    return known.model_copy(update={"epoch": max(known.epoch, epoch), "number": number})


def lost_close(known: Closed | None, shown: Closed | None) -> Closed | None:
    """The end of an epoch, if etcd has lost it."""
    return known if known is not None and (shown is None or shown.epoch < known.epoch) else None


def _is_known(known: Round, shown: Round) -> bool:
    """Whether etcd shows the known round or a later one. Node names are random: a common one means the same run."""
    common = {seat.node for seat in known.seats} & {seat.node for seat in shown.seats}
    return shown.is_same_formation(known) or (shown.number > known.number and bool(common))
