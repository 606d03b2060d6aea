"""The bytes between worker and agent: framed messages on a unix socket, each tagged with its class name in lower case,
and four shared words.

With the words a step boundary costs nothing: the worker looks at one of them instead of asking the kernel. The worker
creates them (a memfd), passes the descriptor to each agent it meets, and both map the same page.
"""

from __future__ import annotations

import array
import errno
import json
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

from instep.wire import PROTOCOL
from instep.wire.codec import D, Document, WireError, from_json, to_json
from instep.wire.messages import FromAgent, FromWorker

MAX_MESSAGE_BYTES = 4 * 1024 * 1024

M = TypeVar("M", bound=FromWorker | FromAgent)

_WITHOUT_A_COPY: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""Before 3.13 Python keeps a descriptor of its own for each mapping."""

_HEADER = struct.Struct("!I")
_WORD_BYTES = 8
_WORDS = 4


def _kinds(base: type[D]) -> dict[str, type[D]]:
    """The classes below `base` that have none below them, by the names that they are sent with."""
    found = [(kind, _kinds(kind)) for kind in base.__subclasses__()]
    return {name: leaf for kind, below in found for name, leaf in (below or {_name(kind): kind}).items()}


def _name(kind: type[Document]) -> str:
    return kind.__name__.lower()


_FROM_WORKER: Final = _kinds(FromWorker)
_FROM_AGENT: Final = _kinds(FromAgent)


def _encode(message: FromWorker | FromAgent) -> bytes:
    return json.dumps({"t": _name(type(message)), **to_json(message)}, separators=(",", ":")).encode()


def from_worker(body: bytes) -> FromWorker | None:
    """None for a message that only a newer version knows. Raises WireError."""
    return _decode(_FROM_WORKER, body)


def from_agent(body: bytes) -> FromAgent | None:
    """None for a message that only a newer version knows. Raises WireError."""
    return _decode(_FROM_AGENT, body)


def _decode(kinds: Mapping[str, type[D]], body: bytes) -> D | None:
    try:
        document = json.loads(body)
        if b"\\ud" in body.lower():  # a file name that is not UTF-8, in an error's text
            document = json.loads(json.dumps(document, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        raise WireError("a frame is not JSON") from None
    name = document.get("t") if isinstance(document, dict) else None
    if not isinstance(name, str):
        raise WireError("a frame holds no message")
    if name == "hello" and document.get("protocol") != PROTOCOL:
        name = "otherhello"
    return from_json(kinds[name], document) if name in kinds else None


def framed(message: FromWorker | FromAgent) -> bytes:
    """Raises WireError when it is too long."""
    body = _encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return _HEADER.pack(len(body)) + body


class Decoder(Generic[M]):
    """Bytes in, whole messages out, as decoded by `read`; holds at most one incomplete message."""

    def __init__(self, read: Callable[[bytes], M | None]) -> None:
        self._read = read
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """Raises WireError for a frame that is too long or no message; then the connection cannot be used any more."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_MESSAGE_BYTES:
                raise WireError(f"a frame of {length} bytes is over the limit of {MAX_MESSAGE_BYTES}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            message = self._read(body)
            if message is not None:
                yield message

    @property
    def partial(self) -> bool:
        """Whether the rest of a message is missing."""
        return bool(self._buffer)


class Words:
    """The shared page. `messages` counts what the agent has sent, and `beat` is when it last ran; `step`
    and `at` are the worker's newest boundary and its time.

    Each word has one writer. Both times are on the monotonic clock, which both processes share.
    """

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, _WORDS * _WORD_BYTES, **_WITHOUT_A_COPY)
        self.integers = memoryview(self._map).cast("q")
        self.floats = memoryview(self._map).cast("d")

    @property
    def messages(self) -> int:
        return self.integers[0]

    def count_message(self) -> None:
        """Called by the agent when a message is in the socket, and when the socket is full of a part of one."""
        self.integers[0] += 1

    @property
    def step(self) -> int:
        """The last boundary passed; -1 before the first."""
        return self.integers[1]

    @property
    def at(self) -> float:
        return self.floats[2]

    @property
    def beat(self) -> float:
        return self.floats[3]

    def set_beat(self, now: float) -> None:
        """Called by the agent once a second: it is neither stopped nor stuck."""
        self.floats[3] = now

    def close(self) -> None:
        self.integers.release()
        self.floats.release()
        self._map.close()


def create_words() -> tuple[Words, int]:
    """New words, and the descriptor to pass on. The caller closes it."""
    descriptor = os.memfd_create("instep", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _WORDS * _WORD_BYTES)
    words = Words(descriptor)
    words.integers[1] = -1
    return words, descriptor


def receive_with_descriptor(sock: socket.socket, size: int) -> tuple[bytes, int | None]:
    """The data, and the descriptor that came with it, if any. Further ones are closed. Raises OSError, which the
    kernel does not, if this process had no descriptor left for it."""
    data, ancillary, flags, _address = sock.recvmsg(size, socket.CMSG_SPACE(4 * array.array("i").itemsize))
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    if flags & socket.MSG_CTRUNC and not descriptors:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for extra in descriptors[1:]:
        os.close(extra)
    return data, (descriptors[0] if descriptors else None)
