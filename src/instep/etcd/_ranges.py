"""Reads many keys at one revision, in messages of bounded size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from instep.errors import EtcdError
from instep.etcd import _wire
from instep.etcd._encoding import key_value, listing
from instep.etcd._types import KeyValue, Listing

Read: TypeAlias = Callable[[Any], Awaitable[Any]]

_DESCEND = 2
_BY_CREATION = 2


async def read_newest(read: Read, start: bytes, end: bytes, *, revision: int, limit: int, keys_only: bool) -> Listing:
    request = _wire.RangeRequest(
        key=start,
        range_end=end,
        revision=revision,
        limit=limit,
        keys_only=keys_only,
        sort_order=_DESCEND,
        sort_target=_BY_CREATION,
    )
    return listing(await read(request))


async def read_pages(
    read: Read, start: bytes, end: bytes, *, revision: int, limit: int, keys_only: bool, page_size: int
) -> Listing:
    """All pages at the revision of the first. A page that is too large for a message is read in halves."""
    kvs: list[KeyValue] = []
    while True:
        size = min(page_size, limit - len(kvs)) if limit else page_size
        request = _wire.RangeRequest(key=start, range_end=end, revision=revision, limit=size, keys_only=keys_only)
        try:
            reply = await read(request)
        except EtcdError as error:
            if error.code != "RESOURCE_EXHAUSTED" or size == 1:
                raise
            page_size = size // 2
            continue
        revision = revision or reply.header.revision
        kvs.extend(map(key_value, reply.kvs))
        if not reply.more or not reply.kvs or len(kvs) == limit:
            return Listing(tuple(kvs), revision)
        start = reply.kvs[-1].key + b"\0"
