"""Whether etcd still has the history that a client has seen, and what proves that it has not. Pure.

An etcd that was restored from a snapshot, or emptied, or replaced by another one at the same address, answers like any
other. Two things prove it: another cluster id, and a linearizable answer below a revision that was known when it was
asked for. A member that lags also answers watches and keepalives below it: that proves nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Moment:
    """The state when a request was sent: its answer cannot be older."""

    changes: int
    cluster: int
    revision: int


class StoreHistory:
    """`changes` counts how often etcd was found to hold another history; `reason` says what proved it last. `revision`
    is the highest seen in this one, `lost` the highest seen in the one before."""

    def __init__(self) -> None:
        self.changes = 0
        self.cluster = 0
        self.revision = 0
        self.lost = 0
        self.reason = ""
        self._listeners: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"StoreHistory(cluster {self.cluster:x}, revision {self.revision}, {self.changes} changes)"

    def now(self) -> Moment:
        """The current moment, to pass to `heard` with the answer of a request that starts now."""
        return Moment(self.changes, self.cluster, self.revision)

    def heard(self, header: Any, sent: Moment, *, linearizable: bool) -> None:
        """Records an answer and the state at its request. An answer to a request from before a change may belong to
        either history and is ignored. An answer that is not linearizable shows only the cluster id."""
        if sent.changes != self.changes:
            return
        if sent.cluster and header.cluster_id and header.cluster_id != sent.cluster:
            self.changed(f"its cluster id is {header.cluster_id:x}, and was {sent.cluster:x}")
        elif linearizable and header.revision < sent.revision:
            self.changed(f"it is at revision {header.revision}, and was at {sent.revision}")
        self.cluster = header.cluster_id or self.cluster
        if linearizable:
            self.revision = max(self.revision, header.revision)

    def changed(self, reason: str) -> None:
        """Notifies all listeners that this is another history."""
        self.changes += 1
        self.reason = reason
        self.lost, self.revision = self.revision, 0
        for listener in tuple(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` at each change from now on. The returned function ends that."""
        self._listeners.append(listener)

        def end() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return end
