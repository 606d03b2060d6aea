"""Which permission was missing when etcd refused a transaction: etcd itself does not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instep.etcd import _wire
from instep.etcd._encoding import decode_key
from instep.etcd._ops import Compare, Op

MAX_ASKED = 64
MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Need:
    """A permission on one key, or on the range up to `end`."""

    permission: Literal["read", "write"]
    key: bytes
    end: bytes

    def __str__(self) -> str:
        return f"{self.permission} {decode_key(self.key)}{'*' if self.end else ''}"

    def probe(self) -> Any:
        """A transaction without effect that etcd refuses without this permission: etcd checks the operations of both
        branches, and this branch never runs."""
        if self.permission == "read":
            operation = _wire.RequestOp(request_range=_wire.RangeRequest(key=self.key, range_end=self.end, limit=1))
        elif self.end:
            operation = _wire.RequestOp(request_delete_range=_wire.DeleteRangeRequest(key=self.key, range_end=self.end))
        else:
            operation = _wire.RequestOp(request_put=_wire.PutRequest(key=self.key))
        return _wire.TxnRequest(failure=[operation])


def needs_of(compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> tuple[Need, ...]:
    """The permissions that a transaction needs, writes first, each once."""
    reads = [Need("read", compare.wire.key, compare.wire.range_end) for compare in compares]
    operations = [_need_of(op) for op in (*then, *otherwise)]
    return tuple(dict.fromkeys(sorted([*operations, *reads], key=lambda need: need.permission == "read")))


def _need_of(op: Op) -> Need:
    match op.wire.WhichOneof("union"):
        case "request_put":
            return Need("write", op.wire.request_put.key, b"")
        case "request_delete_range":
            return Need("write", op.wire.request_delete_range.key, op.wire.request_delete_range.range_end)
        case _:
            return Need("read", op.wire.request_range.key, op.wire.request_range.range_end)


def in_words(missing: Sequence[Need]) -> str:
    """`write a/b, read c/*`, of the first three."""
    return ", ".join(map(str, missing[:MAX_NAMED]))
