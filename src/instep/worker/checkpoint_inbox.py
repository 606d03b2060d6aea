"""What this worker knows about checkpoints and barriers, and its unanswered queries. No socket, no clock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from instep.wire import messages as wire
from instep.wire.documents import Pointer, Saving

log = logging.getLogger("instep")

OUTCOMES_KEPT: Final = 100
"""Outcomes of commits that are kept. A slot that asks for an older one sends its commit again and gets the same
outcome."""

Said = TypeVar("Said", bound=wire.FromWorker)


class BarrierCalls:
    """The barrier at which this worker waits, and the last release that it has seen."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._after = 0

    def __repr__(self) -> str:
        return f"BarrierCalls({f'at {self.name}' if self.name else 'nowhere'}, after release {self._after})"

    def enter(self, name: str, view: int) -> wire.EnterBarrier:
        self.name = name
        return wire.EnterBarrier(name, view, self._after)

    def leave(self) -> wire.LeaveBarrier:
        self.name = None
        return wire.LeaveBarrier()

    def on_release(self, message: wire.BarrierReleased) -> None:
        if message.name == self.name and message.number > self._after:
            self._after, self.name = message.number, None


class CheckpointInbox:
    """Promise: each query and commit is kept until it is answered, and `unanswered` repeats it to each new agent.

    Limit: an answer that is no longer awaited is dropped; only the outcome of a commit is then logged.
    """

    def __init__(self) -> None:
        self.saved: Pointer | None = None
        self.saving: Saving | None = None
        self.barrier = BarrierCalls()
        self.offer: wire.Offer | None = None
        """The checkpoint that this rank votes on, or resumes from."""
        self._commits: dict[str, wire.CommitCheckpoint] = {}
        self._outcomes: dict[str, wire.CommitResult] = {}
        self._queries: dict[int, wire.Query] = {}
        self._answers: dict[int, wire.QueryResult] = {}
        self._lasting: dict[str, wire.FromWorker] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"CheckpointInbox({len(self._commits)} commits, {len(self._queries)} queries, saved {self.saved})"

    # -- asking -----------------------------------------------------------------------------------------------------

    def commit(self, message: wire.CommitCheckpoint) -> wire.CommitCheckpoint:
        self._commits[message.manifest.path] = message
        return message

    @property
    def open_commits(self) -> frozenset[str]:
        """Ids of checkpoints whose commit has no outcome yet."""
        return frozenset(message.manifest.id for message in self._commits.values())

    def begin(self, path: str) -> None:
        """A save begins in that directory. An earlier one of the same name may have been deleted."""
        self._outcomes.pop(path, None)

    def outcome(self, path: str) -> wire.CommitResult | None:
        """The outcome of the directory's commit; None while it is not known."""
        return self._outcomes.get(path)

    def ask(self, query: Callable[[int], wire.Query]) -> tuple[int, wire.Query]:
        """Makes a query with the next number."""
        self._last += 1
        message = self._queries[self._last] = query(self._last)
        return self._last, message

    def take_answer(self, number: int) -> wire.QueryResult | None:
        """Returns the answer, if there is one, and forgets the query."""
        self._queries.pop(number, None)
        return self._answers.pop(number, None)

    def is_answered(self, number: int) -> bool:
        return number in self._answers

    def repeat_to_agents(self, name: str, message: Said) -> Said:
        """Repeats the message to each new agent until `stop_repeating`. Replaces the former message of that name."""
        self._lasting[name] = message
        return message

    def stop_repeating(self, *names: str) -> None:
        for name in names:
            self._lasting.pop(name, None)

    def drop_offer(self) -> None:
        """Forgets the offer, which answered an earlier query."""
        self.offer = None

    def unanswered(self) -> Iterator[wire.FromWorker]:
        """The messages for a new agent."""
        yield from self._lasting.values()
        yield from self._commits.values()
        yield from self._queries.values()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def receive(self, message: wire.FromAgent) -> None:
        match message:
            case wire.CheckpointNews():
                self.saved, self.saving = message.saved, message.saving
            case wire.CommitResult():
                self._on_outcome(message)
            case wire.BarrierReleased():
                self.barrier.on_release(message)
            case wire.Offer():
                self.offer = message
            case wire.QueryResult() if message.q in self._queries:
                self._answers[message.q] = message

    def _on_outcome(self, message: wire.CommitResult) -> None:
        path = message.path
        if self._commits.pop(path, None) is None:
            return
        self._outcomes[path] = message
        if len(self._outcomes) > OUTCOMES_KEPT:
            del self._outcomes[next(iter(self._outcomes))]
        if message.problem is None:
            log.info("checkpoint %s is committed: %s", message.id, path)
        else:
            log.warning("checkpoint %s is not committed: %s", message.id, message.problem)
