"""The fencing token: one whole number of the run's epoch and the create revision of a candidate key. Pure.

Create revisions rise from leader to leader only while etcd's history grows. An etcd that was restored from a backup or
emptied gives the same revisions again. The epoch rises by one when that is noticed, and is compared first.
"""

from __future__ import annotations

from typing import Final

from instep.names import REVISION_BITS

MAX_EPOCH: Final = 2**19 - 1
"""A token stays below 2**63."""
_REVISIONS: Final = 1 << REVISION_BITS


def make_token(epoch: int, revision: int) -> int:
    """In epoch 0 the token is the revision itself. Raises ValueError for a number that does not fit."""
    if not 0 <= epoch <= MAX_EPOCH or not 0 <= revision < _REVISIONS:
        raise ValueError(f"no token can be made of epoch {epoch} and revision {revision}")
    return epoch * _REVISIONS + revision


def epoch_of(token: int) -> int:
    return token // _REVISIONS


def revision_of(token: int) -> int:
    return token % _REVISIONS
