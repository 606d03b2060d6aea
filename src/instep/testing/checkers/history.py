"""A recorder of clients' requests and answers, in memory or streamed to a file."""

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


class History:
    """Records in the order in which they were added, from any thread. Records are never changed or removed.

    Without `path`, records are kept in memory. With `path`, each record is written to that file as one line, and none
    is kept. A record beyond `limit` raises SettingsError, because a history with a gap proves nothing. `clock` returns
    monotonic seconds. Limit: a call is recorded when it ends, so open calls of a killed recorder are missing. Record in
    a process that survives the faults.
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
        """Closes the history for new records. The existing ones can still be read."""
        with self._lock:
            self._limit = 0
            if self._file is not None:
                self._file.close()

    def add(self, item: object) -> None:
        """Adds an Operation, a Hold or another record of the checkers."""
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
        """All records in order. Reads those in a file one by one."""
        if self.path is not None:
            return load_records(self.path)
        with self._lock:
            return iter(list(self._kept))

    def select(self, kind: type[T]) -> list[T]:
        """The records of one type, such as `history.select(Operation)`."""
        return [item for item in self.records() if isinstance(item, kind)]

    def save(self, path: Path | str) -> int:
        """Writes the records to another file, for `load`. Returns their number."""
        return save_records(path, self.records())

    @classmethod
    def load(cls, path: Path | str) -> History:
        """Loads a file into memory."""
        history = cls()
        for item in load_records(path):
            history.add(item)
        return history

    def call(self, client: str, kind: str, key: str, *args: Value) -> Call:
        """Records the block as one operation:

            async with history.call("a", "create", key, value) as op:
                op.result = Reply.wrote(revision)

        Its time is from the start of the block to its end. An error is raised to the caller. If the error says that
        nothing was done, the operation is dropped; otherwise the outcome of a write is unknown. A failed get is
        dropped.
        """
        return Call(self, client, kind, key, args)


class Call:
    """A call of `History.call`. Set `result` to the answer; only a put may omit it."""

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
        elif self._kind != "get" and may_have_happened(error):
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
        raise SettingsError(f"{path} exists already: load it, or choose another name") from error


def may_have_happened(error: BaseException) -> bool:
    """Whether a write that failed with this error may have been applied, now or later. True if in doubt."""
    if isinstance(error, (EtcdFull, EtcdUnavailable)):
        return error.applied_unknown
    return not isinstance(error, _REFUSALS)
