"""What is to be written back where etcd holds another history than the nodes have seen: restored, emptied, replaced.

The nodes that train are the authority, as for values (docs/decisions/0016). Pure.
"""

from __future__ import annotations

from instep.coordination.rendezvous.decision import epoch_of
from instep.coordination.rendezvous.records import Closed, Round


def lost_round(
    known: Round | None, known_closed: Closed | None, shown: Round | None, shown_closed: Closed | None
) -> Round | None:
    """The round that a node knows as it is to be written; None where etcd shows it, or a later one of the same nodes.

    Its number and its epoch come after whatever etcd shows, which may be of another run under the same name: so nobody
    takes it for one that is over. Of an epoch that has ended, only what is missing is written.
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
    """The end of an epoch that etcd has forgotten."""
    return known if known is not None and (shown is None or shown.epoch < known.epoch) else None


def _is_known(known: Round, shown: Round) -> bool:
    """Names of nodes are random and of one process: who has one in common is the same run."""
    common = {seat.node for seat in known.seats} & {seat.node for seat in shown.seats}
    return shown.is_same_formation(known) or (shown.number > known.number and bool(common))
