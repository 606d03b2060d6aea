"""Linearizability by exhaustive search: only for small histories, and independent of the checker.

Tries every order that real time allows, every choice of the operations without an answer, and every revision that a
write may have had, from a small range.
"""

from __future__ import annotations

from collections.abc import Iterator

from instep.testing.checkers import Operation, Reply

SPARE_REVISIONS = 8
"""How far above the highest revision told a write may lie: as many as there are writes in a small history."""


def explains(operations: list[Operation]) -> bool:
    """Whether the operations on one key, which does not exist at first, have an order."""
    told = [r for o in operations if o.reply for r in (o.reply.revision, o.reply.mod_revision) if r is not None]
    asked = [o.args[0] for o in operations if o.kind == "cas_revision" and isinstance(o.args[0], int)]
    return _orders(tuple(operations), None, 0, 0, max([0, *told, *asked]) + SPARE_REVISIONS)


def _orders(left: tuple[Operation, ...], value: object, mod: int, now: int, top: int) -> bool:
    if all(operation.returned_at is None for operation in left):
        return True
    for index, operation in enumerate(left):
        rest = left[:index] + left[index + 1 :]
        if any(o.returned_at is not None and o.returned_at < operation.called_at for o in rest):
            continue
        if any(_orders(rest, *after, top) for after in _effects(operation, value, mod, now, top)):
            return True
    return False


def _effects(operation: Operation, value: object, mod: int, now: int, top: int) -> Iterator[tuple[object, int, int]]:
    """(value, mod revision, store revision) after the operation, for each outcome that fits the record."""
    reply = operation.reply
    if operation.kind == "get":
        if reply is not None and reply.value == value and reply.mod_revision in (None, mod):
            yield from ((value, mod, after) for after in _reads(reply, now))
        return
    applied = _applies(operation, value, mod)
    if reply is not None and reply.applied not in (None, applied):
        return
    if not applied:
        yield from ((value, mod, after) for after in _reads(reply, now))
        return
    revisions = range(now + 1, top + 1) if reply is None or reply.revision is None else [reply.revision]
    new = None if operation.kind == "delete" else operation.args[-1]
    yield from ((new, revision if new is not None else 0, revision) for revision in revisions if revision > now)


def _reads(reply: Reply | None, now: int) -> Iterator[int]:
    if reply is None or reply.revision is None:
        yield now
    elif reply.revision >= now:
        yield reply.revision


def _applies(operation: Operation, value: object, mod: int) -> bool:
    if operation.kind == "put":
        return True
    if operation.kind == "delete":
        return value is not None
    if operation.kind == "create":
        return value is None
    if operation.kind == "cas_revision":
        return mod == operation.args[0]
    return value == operation.args[0]
