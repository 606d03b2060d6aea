"""A worker's part in barriers: reports its arrival and waits for the release."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Final

from instep.errors import BarrierTimeout, SettingsError
from instep.names import check_barrier_name
from instep.wire.messages import AskBarrier, MissingRanks, QueryFailure, QueryResult
from instep.worker.agent_session import AgentSession

ANSWER_S: Final = 3.0
"""After the timeout, the agent has so long to name the missing ranks."""
NAMED: Final = 20


class Barrier:
    """Used in the training thread only."""

    def __init__(self, session: AgentSession, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._calls = session.inbox.barrier
        self._clock = clock

    def __repr__(self) -> str:
        return f"Barrier(rank {self._session.rank}, {self._calls!r})"

    def meet(self, name: str, timeout_s: float, step: int, alive: Callable[[], None]) -> None:
        """See `Run.barrier`. `step` is the first one that has not begun; `alive` is called repeatedly."""
        check_barrier_name(name)
        timeout_s = _checked(timeout_s)
        session, calls = self._session, self._calls

        def through() -> bool:
            alive()
            session.at_gate(step)
            return calls.name is None

        inbox = session.inbox
        session.send(inbox.repeat_to_agents("barrier", calls.enter(name, session.view)))
        try:
            if session.wait_until(through, timeout_s, step):
                return
            answer = session.ask(lambda q: AskBarrier(q, name), ANSWER_S, step, unless=through)
            if calls.name is not None:
                raise _timed_out(name, timeout_s, answer, session.rank)
        finally:
            inbox.stop_repeating("barrier")
            if calls.name is not None:
                session.send(calls.leave())


def _checked(timeout_s: object) -> float:
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or math.isnan(timeout_s):
        raise SettingsError(f"a barrier's timeout is a number of seconds, not {timeout_s!r}")
    if timeout_s <= 0:
        raise SettingsError(f"a timeout of {timeout_s:g} s leaves no time for any rank to arrive: give more than 0 s")
    return float(timeout_s)


def _timed_out(name: str, waited_s: float, answer: QueryResult | None, rank: int) -> BarrierTimeout:
    began = f"rank {rank} waited {waited_s:g} s at barrier {name!r}"
    if not isinstance(answer, MissingRanks):
        why = answer.problem if isinstance(answer, QueryFailure) else "the node's agent does not answer"
        text = f"{began}, and the missing ranks are not known: {why}"
        return BarrierTimeout(text, waited_s=waited_s)
    missing = [f"rank {other}" for other in answer.ranks]
    if not missing:
        return BarrierTimeout(f"{began}: all ranks arrived, but no leader has released them in time", waited_s=waited_s)
    text = f"{began}: {named(missing)} did not arrive{_elsewhere(answer.elsewhere)}"
    return BarrierTimeout(text, waited_s=waited_s, missing=missing, missing_count=len(missing))


def _elsewhere(ranks_by_name: Mapping[str, tuple[int, ...]]) -> str:
    found = [f"{named([f'rank {rank}' for rank in ranks])} at {name!r}" for name, ranks in ranks_by_name.items()]
    return f" (waiting at another one: {'; '.join(found[:NAMED])})" if found else ""


def named(names: list[str]) -> str:
    """The first 20 of them, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
