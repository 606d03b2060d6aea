"""Events as etcd wrote them: all of one transaction together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from instep.etcd import Event


def by_revision(events: Iterable[Event]) -> Iterator[tuple[int, list[Event]]]:
    """Each revision with its events. `events` hold whole revisions, in order."""
    for revision, group in groupby(events, key=lambda event: event.kv.mod_revision):
        yield revision, list(group)
