"""Resolves open writes of a history before the search. Pure.

If a read found a value that only one write can have written, that write happened, before the read returned, and at the
mod revision that the read found. The writes that stay open were not observed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from instep.testing.checkers.operation import Value
from instep.testing.checkers.register import Act


class _Unseen(str):
    """Stands for every value that no read and no compare mentions: such writes are equivalent."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = str.__hash__


UNSEEN = _Unseen("a value that no operation saw")


def settle(acts: list[Act], initial: Value | None) -> None:
    """Closes the open writes whose value was read, and derives missing revisions."""
    writers: dict[Value, list[Act]] = defaultdict(list)
    for act in acts:
        if act.writes and act.value is not None:
            writers[act.value].append(act)
    witnesses: dict[Value, list[Act]] = defaultdict(list)
    for act in acts:
        value = _seen_by(act)
        if value is not None and value != initial and len(writers[value]) == 1 and writers[value][0] is not act:
            witnesses[value].append(act)
    for value, found in witnesses.items():
        _close(writers[value][0], found)


def from_nowhere(acts: Iterable[Act], initial: Value | None) -> bool:
    """Whether a read or compare found a value that no operation wrote. Then no search is needed."""
    acts = list(acts)
    written = {act.value for act in acts if act.writes} | {initial, None}
    return any(_seen_by(act) not in written for act in acts)


def merge_unseen(acts: Iterable[Act]) -> None:
    """Replaces all values that no read and no compare mentions by one placeholder."""
    acts = list(acts)
    spoken = {act.value for act in acts if act.kind == "get"}
    spoken |= {act.expected for act in acts if act.kind == "cas_value"}
    for act in acts:
        if act.value is not None and act.kind != "get" and act.value not in spoken:
            act.value = UNSEEN


def _seen_by(act: Act) -> Value | None:
    """The value that this act proves to have existed."""
    if act.kind == "get":
        return act.value
    return act.expected if act.kind == "cas_value" and act.writes and not act.open else None


def _close(writer: Act, witnesses: list[Act]) -> None:
    writer.returned_at = min(writer.returned_at, *(witness.returned_at for witness in witnesses))
    writer.open = False
    if writer.revision is None:
        told = [witness.mod_revision for witness in witnesses if witness.mod_revision is not None]
        writer.revision = told[0] if told else None
