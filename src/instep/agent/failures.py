"""The failure record of a worker that did not leave cleanly."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from instep.agent.workers import LocalWorker
from instep.protocol.attempts import TAKEN_OVER
from instep.protocol.records import RankFailure
from instep.wire.messages import Leave

MAX_CAUSE: Final = 64
MAX_TEXT: Final = 200
SILENT: Final = "ended without reporting a reason"
WELL: Final = "ended with exit code 0"


def of_exception(worker: LocalWorker, said: Leave) -> RankFailure:
    """It left because of an exception."""
    return _failure(worker, _line(said.error, MAX_CAUSE) or "left early", _line(said.text, MAX_TEXT))


def of_death(worker: LocalWorker, ending: str | None) -> RankFailure:
    """Its process ended before it had left. `ending` says how, if known."""
    hint = "without leaving the run; 'with instep.join(...) as run:' leaves it" if ending == WELL else ""
    return _failure(worker, ending or SILENT, hint)


def of_replaced(worker: LocalWorker) -> RankFailure:
    """Another process has taken its rank."""
    return _failure(worker, TAKEN_OVER, "another process has joined as this rank")


def _failure(worker: LocalWorker, cause: str, text: str) -> RankFailure:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return RankFailure(
        view=worker.view, rank=worker.rank, host=worker.member.host, cause=cause, text=text or None, at=at
    )


def _line(text: str, length: int) -> str:
    """In one line, without terminal control characters."""
    words = " ".join(text.split())
    return "".join(char for char in words if char.isprintable())[:length]
