"""Between Python values and etcd's messages: keys, ranges, bounds."""

from __future__ import annotations

from typing import Any

from instep.errors import SettingsError
from instep.etcd._types import Event, KeyValue, Listing

# etcd's default --max-request-bytes is 1.5 MiB of the raft entry, which wraps the request in a few bytes
# more.
MAX_REQUEST_BYTES = 1_572_864 - 512
MAX_TXN_OPS = 128

_WHOLE = b"\0"


def encode_key(key: str) -> bytes:
    if not key:
        raise SettingsError("An etcd key must not be empty: give the key's full name.")
    return key.encode("utf-8", errors="surrogateescape")


def encode_value(value: str | bytes) -> bytes:
    return value.encode("utf-8") if isinstance(value, str) else value


def decode_key(key: bytes) -> str:
    """Keys that are not UTF-8 survive the round trip as lone surrogates."""
    return key.decode("utf-8", errors="surrogateescape")


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """The half-open range of all keys that start with `prefix`; the empty prefix is every key."""
    start = prefix.encode("utf-8", errors="surrogateescape")
    stem = start.rstrip(b"\xff")
    if not stem:
        return start or _WHOLE, _WHOLE
    return start, stem[:-1] + bytes([stem[-1] + 1])


def check_size(size_bytes: int, what: str) -> None:
    if size_bytes > MAX_REQUEST_BYTES:
        raise SettingsError(
            f"{what} is {size_bytes / 1_048_576:.1f} MiB, but etcd takes at most 1.5 MiB in a request: "
            "store less in etcd, or a path to it."
        )


def key_value(kv: Any) -> KeyValue:
    return KeyValue(decode_key(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def listing(reply: Any) -> Listing:
    return Listing(tuple(map(key_value, reply.kvs)), reply.header.revision)


def event(wire_event: Any) -> Event:
    return Event("delete" if wire_event.type else "put", key_value(wire_event.kv))
