"""When two may believe at once that they hold the same, and when not. Pure.

A leader of etcd that was frozen for longer than a lease may end that lease when it wakes, on every version tried
(docs/decisions/0008-leases.md). The holder learns of it with its next renewal, or, cut off, when the lease would have
ended by its own reckoning: within a TTL. What fencing promises has no such allowance, and at any other time nobody may
believe beyond the moment at which another one is let in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from instep.testing.checkers import Hold


def without_excused(holds: Iterable[Hold], thaws: Sequence[float], ttl_s: float) -> list[Hold]:
    """The holds, less the part of a belief that ended within a TTL of a thaw and came after it."""
    return [_less(hold, sorted(thaws), ttl_s) for hold in holds]


def _less(hold: Hold, thaws: Sequence[float], ttl_s: float) -> Hold:
    # The earliest thaw that excuses it: any of them may have ended its lease.
    woke = next((thaw for thaw in thaws if thaw <= hold.end <= thaw + ttl_s), None)
    return hold if woke is None else replace(hold, until=max(hold.acquired_at, woke))
