"""The parts of a transaction: comparisons and operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from instep.errors import SettingsError
from instep.etcd import _wire
from instep.etcd._encoding import MAX_TXN_OPS, check_size, encode_key, encode_value, key_value, prefix_range
from instep.etcd._types import DeleteResult, Listing, OpResult, PutResult, TxnResult

Relation: TypeAlias = Literal["==", "!=", "<", ">"]

_RELATIONS: dict[str, int] = {"==": 0, ">": 1, "<": 2, "!=": 3}
_TARGETS = {"version": 0, "create_revision": 1, "mod_revision": 2, "value": 3, "lease": 4}


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition on one key; make it with the class methods. A missing key has only zeros."""

    wire: Any
    text: str

    def __repr__(self) -> str:
        return f"Compare({self.text})"

    @classmethod
    def value(cls, key: str, relation: Relation, value: str | bytes) -> Compare:
        """On a missing key every comparison of the value fails."""
        return cls._make("value", key, relation, encode_value(value))

    @classmethod
    def version(cls, key: str, relation: Relation, number: int) -> Compare:
        """Compares the number of writes since the key was created."""
        return cls._make("version", key, relation, number)

    @classmethod
    def create_revision(cls, key: str, relation: Relation, revision: int) -> Compare:
        """Compares the revision that created the key."""
        return cls._make("create_revision", key, relation, revision)

    @classmethod
    def mod_revision(cls, key: str, relation: Relation, revision: int) -> Compare:
        """Compares the revision of the last write."""
        return cls._make("mod_revision", key, relation, revision)

    @classmethod
    def lease(cls, key: str, relation: Relation, lease_id: int) -> Compare:
        """Compares the lease of the key, 0 for a key on no lease."""
        return cls._make("lease", key, relation, lease_id)

    @classmethod
    def absent(cls, key: str, prefix: bool = False) -> Compare:
        """With `prefix`: no key starts with it."""
        compare = cls._make("create_revision", key, "==", 0)
        if not prefix:
            return compare
        compare.wire.key, compare.wire.range_end = prefix_range(key)
        return cls(compare.wire, f"no key under {key}")

    @classmethod
    def present(cls, key: str) -> Compare:
        """The key exists."""
        return cls._make("create_revision", key, ">", 0)

    @classmethod
    def _make(cls, target: str, key: str, relation: str, operand: int | bytes) -> Compare:
        if relation not in _RELATIONS:
            raise SettingsError(f"etcd cannot compare with {relation!r}: use ==, !=, < or >.")
        fields = {
            "result": _RELATIONS[relation],
            "target": _TARGETS[target],
            "key": encode_key(key),
            target: operand,
        }
        return cls(_wire.Compare(**fields), f"{target} of {key} {relation} {operand!r}")


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a transaction; make it with the class methods. A txn may write a key only once."""

    wire: Any
    text: str

    def __repr__(self) -> str:
        return f"Op({self.text})"

    @classmethod
    def put(cls, key: str, value: str | bytes, lease: int = 0) -> Op:
        """Writes a key, on a lease if one is given."""
        request = _wire.PutRequest(key=encode_key(key), value=encode_value(value), lease=lease)
        return cls(_wire.RequestOp(request_put=request), f"put {key}")

    @classmethod
    def delete(cls, key: str, prefix: bool = False) -> Op:
        """Deletes a key; with `prefix`, all keys that start with it."""
        start, end = prefix_range(key) if prefix else (encode_key(key), b"")
        request = _wire.DeleteRangeRequest(key=start, range_end=end)
        return cls(_wire.RequestOp(request_delete_range=request), f"delete {key}{'*' if prefix else ''}")

    @classmethod
    def get(cls, key: str) -> Op:
        """Reads a key."""
        return cls(_wire.RequestOp(request_range=_wire.RangeRequest(key=encode_key(key))), f"get {key}")

    @classmethod
    def range(cls, prefix: str, limit: int = 0) -> Op:
        """Unlike `Client.range` this is not paged: the reply must fit the client's 64 MiB."""
        start, end = prefix_range(prefix)
        request = _wire.RangeRequest(key=start, range_end=end, limit=limit)
        return cls(_wire.RequestOp(request_range=request), f"range {prefix}*")


def txn_request(compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> Any:
    """The request. Raises SettingsError beyond etcd's limits: 128 entries per part, 1.5 MiB in all."""
    for name, part in (("compares", compares), ("operations", then), ("operations", otherwise)):
        if len(part) > MAX_TXN_OPS:
            raise SettingsError(
                f"A transaction has {len(part)} {name}, but etcd takes at most {MAX_TXN_OPS}: split it."
            )
    request = _wire.TxnRequest(
        compare=[c.wire for c in compares],
        success=[op.wire for op in then],
        failure=[op.wire for op in otherwise],
    )
    check_size(request.ByteSize(), "The transaction")
    return request


@dataclass(frozen=True, slots=True)
class TxnSubject:
    """Names the keys of a transaction for an error message; the text is made only when needed."""

    compares: Sequence[Compare]
    then: Sequence[Op]
    otherwise: Sequence[Op]

    def __str__(self) -> str:
        parts: list[Compare | Op] = [*self.compares, *self.then, *self.otherwise]
        shown = ", ".join(part.text for part in parts[:6])
        return f"do the transaction [{shown}{', ...' if len(parts) > 6 else ''}]"


def txn_result(reply: Any) -> TxnResult:
    revision = reply.header.revision
    results = tuple(_op_result(response, revision) for response in reply.responses)
    return TxnResult(reply.succeeded, revision, results)


def _op_result(response: Any, revision: int) -> OpResult:
    # The parts of a transaction hold one revision together; the headers inside may be left empty by etcd.
    kind = response.WhichOneof("union")
    if kind == "response_range":
        return Listing(tuple(map(key_value, response.response_range.kvs)), revision)
    if kind == "response_put":
        return PutResult(revision)
    return DeleteResult(revision, response.response_delete_range.deleted)
