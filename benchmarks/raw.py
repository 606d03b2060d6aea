"""The baseline for Instep's client: a raw grpc.aio stub of etcd's Put and Range."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from instep.etcd import _wire
from instep.etcd._grpc import aio


class RawStub:
    """One channel with grpc's default options; no timeouts, retries or credentials."""

    def __init__(self, endpoint: str) -> None:
        self._channel = aio.insecure_channel(endpoint.removeprefix("http://"))
        self._put = self._method(_wire.PUT)
        self._range = self._method(_wire.RANGE)

    def _method(self, method: _wire.Method) -> Any:
        return self._channel.unary_unary(
            method.path, request_serializer=method.serialize, response_deserializer=method.deserialize
        )

    async def put(self, key: bytes, value: bytes) -> None:
        await self._put(_wire.PutRequest(key=key, value=value))

    async def get(self, key: bytes) -> bytes:
        reply = await self._range(_wire.RangeRequest(key=key))
        return bytes(reply.kvs[0].value)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)
