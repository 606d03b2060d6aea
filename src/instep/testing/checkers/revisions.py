"""etcd's revisions against real time, over all keys at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from instep.testing.checkers.operation import Operation
from instep.testing.checkers.verdict import Findings, Verdict, Violation

_NOTHING = (0, None)


def check_revisions(operations: Iterable[Operation]) -> Verdict:
    """Whether revisions increase with time: an operation that was called after another one returned has no lower
    revision, and a write a higher one; and whether no two writes of one key got the same revision.

    It covers all keys together, while `check_linearizability` checks each key alone. It uses only operations with a
    revision. Limit: this is necessary for strict serializability, but not sufficient.
    """
    told = [operation for operation in operations if _lowest(operation) is not None]
    findings = Findings("revisions")
    findings.checked = len(told)
    findings.extend(_against_time(told))
    findings.extend(_twice(told))
    return findings.verdict()


def _lowest(operation: Operation) -> int | None:
    """A lower bound of the store's revision when the operation took effect."""
    reply = operation.reply
    if reply is None or not operation.known:
        return None
    return reply.revision if reply.revision is not None else reply.mod_revision


def _writes(operation: Operation) -> bool:
    return operation.reply is not None and operation.kind != "get" and operation.reply.applied is True


def _against_time(told: list[Operation]) -> Iterator[Violation]:
    """One pass over the calls in order, with the highest revision of the operations that returned before each."""
    returned = iter(sorted(told, key=lambda o: o.returned_at or 0.0))
    waiting = next(returned, None)
    highest: tuple[int, Operation | None] = _NOTHING
    for operation in sorted(told, key=lambda o: o.called_at):
        while waiting is not None and (waiting.returned_at or 0.0) < operation.called_at:
            highest = max(highest, (_lowest(waiting) or 0, waiting), key=lambda item: item[0])
            waiting = next(returned, None)
        if highest[1] is not None and _too_low(operation, highest[0]):
            yield Violation("time", f"{operation} was called after {highest[1]} had returned")


def _too_low(operation: Operation, highest: int) -> bool:
    reply = operation.reply
    if reply is None or reply.revision is None:
        return False  # a mod revision may be old
    return reply.revision < highest + _writes(operation)


def _twice(told: list[Operation]) -> Iterator[Violation]:
    writers: dict[tuple[str, int | None], list[Operation]] = defaultdict(list)
    for operation in told:
        if _writes(operation) and operation.reply is not None and operation.reply.revision is not None:
            writers[operation.key, operation.reply.revision].append(operation)
    for (key, revision), found in writers.items():
        if len(found) > 1:
            yield Violation("unique", f"revision {revision} of {key} was written by {found[0]} and by {found[1]}")
