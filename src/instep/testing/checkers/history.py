"""A recorder: what clients asked and were told, kept in memory or streamed to a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from instep.errors import (
    Compacted,
    EtcdDenied,
    EtcdFull,
    EtcdUnavailable,
    LeaseLost,
    SettingsError,
)
from instep.testing.checkers.jsonl import encode, load_records, save_records
from instep.testing.checkers.operation import Operation, Reply, Value

T = TypeVar("T")

_REFUSALS = (SettingsError, EtcdDenied, Compacted, LeaseLost)
_READS = ("get",)


class History:
    """Records in the order they were added, from any thread; nothing is ever changed or taken out.

    Without `path` they stay in memory; with it each is written to that file as one line when it is added, and none is
    held. At most `limit` records: a further one raises SettingsError rather than leave a gap, since a history with
    a gap proves nothing. `clock` gives monotonic seconds. Limit: a call is recorded when it ends, so the calls
    that a killed recorder had open are missing; record in a process that outlives the faults.
    """

    def __init__(
        self, path: Path | str | None = None, *, limit: int = 2_000_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if limit <= 0:
            raise SettingsError("a history holds at least one record")
        self.path = None if path is None else Path(path)
        self.clock = clock
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: list[object] = []
        self._count = 0
        self._file = None if self.path is None else _created(self.path)

    def __repr__(self) -> str:
        return f"History({self.path or 'in memory'}, {self._count} records)"

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more records; what was recorded can still be read."""
        with self._lock:
            self._limit = 0
            if self._file is not None:
                self._file.close()

    def add(self, item: object) -> None:
        """Record an Operation, a Hold or another record of the checkers."""
        line = encode(item)
        with self._lock:
            if self._count >= self._limit:
                raise SettingsError(f"this history is closed, or full after {self._count} records: give a larger limit")
            self._count += 1
            if self._file is None:
                self._kept.append(item)
            else:
                self._file.write(line + "\n")

    def records(self) -> Iterator[Any]:
        """All of them in order; those in a file are read one by one."""
        if self.path is not None:
            return load_records(self.path)
        with self._lock:
            return iter(list(self._kept))

    def select(self, kind: type[T]) -> list[T]:
        """Those of one type, such as `history.select(Operation)`."""
        return [item for item in self.records() if isinstance(item, kind)]

    def save(self, path: Path | str) -> int:
        """Write them to another file, for `load`; returns how many."""
        return save_records(path, self.records())

    @classmethod
    def load(cls, path: Path | str, *, limit: int = 2_000_000) -> History:
        """What a file holds, in memory."""
        history = cls(limit=limit)
        for item in load_records(path):
            history.add(item)
        return history

    def call(self, client: str, kind: str, key: str, *args: Value) -> Call:
        """Record what happens inside the block as one operation:

            async with history.call("a", "create", key, value) as op:
                op.result = Reply.wrote(revision)

        It is timed from the block's start to its end. An error goes on to the caller: one that says that nothing
        was done drops the operation, any other leaves the outcome of a write open. A get that failed is dropped.
        """
        return Call(self, client, kind, key, args)


class Call:
    """Made by `History.call`. `result` is what the call was told; only a put can do without."""

    def __init__(self, history: History, client: str, kind: str, key: str, args: tuple[Value, ...]) -> None:
        self.result: Reply | None = None
        self._history = history
        self._client = client
        self._kind = kind
        self._key = key
        self._args = args
        self._called_at = 0.0

    def __repr__(self) -> str:
        return f"Call({self._client}: {self._kind} {self._key})"

    def __enter__(self) -> Self:
        self._called_at = self._history.clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._record(self._told(), self._history.clock())
        elif self._kind not in _READS and may_have_happened(error):
            self._record(None, None)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _told(self) -> Reply:
        if self.result is not None:
            return self.result
        if self._kind == "put":
            return Reply.wrote()
        raise SettingsError(f"{self._kind} of {self._key} ended without a result: set op.result inside the block")

    def _record(self, reply: Reply | None, returned_at: float | None) -> None:
        self._history.add(
            Operation(self._client, self._kind, self._key, self._args, reply, self._called_at, returned_at)
        )


def _created(path: Path) -> IO[str]:
    try:
        return path.open("x", encoding="utf-8", buffering=1)
    except FileExistsError as error:
        raise SettingsError(f"{path} is there already: load it, or give another name") from error


def may_have_happened(error: BaseException) -> bool:
    """Whether a write that ended with this error may have been applied, now or later. In doubt it may."""
    if isinstance(error, (EtcdFull, EtcdUnavailable)):
        return error.applied_unknown
    return not isinstance(error, _REFUSALS)
