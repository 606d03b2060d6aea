"""Preemption of a worker: asks the run to save and stop, and ends the worker in time if that is not agreed on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from instep.errors import Preempted
from instep.wire.messages import PreemptionNotice
from instep.worker import sigterm
from instep.worker.agent_session import AgentSession
from instep.worker.agreement import Agreement
from instep.worker.grace_budget import GraceBudget
from instep.worker.place import has_several_nodes

log = logging.getLogger("instep")

RESTART_WAIT_S: Final = 15.0
"""Until the preempted node has ended its workers and notified the others."""
RESTART_LOOK_S: Final = 0.05
REPLACED_S: Final = 2.0
"""A rank that is gone may be replaced, or registered again, in this time."""


class Preemption:
    """Promise: after the first SIGTERM between `open` and `close`, the node's agent is asked to stop the run with a
    save, at the next boundary or within half a second of any wait; so is each later agent. If no stop is agreed on
    by the time that a save needs, the worker fails with Preempted at its boundary, or in any wait before its first
    one.

    The signal handler calls `wake`, which makes the next boundary look.
    """

    def __init__(
        self,
        session: AgentSession,
        agreement: Agreement[Any],
        *,
        grace_s: float,
        further: tuple[int, ...] = (),
        wake: Callable[[], None],
    ) -> None:
        self._session = session
        self._agreement = agreement
        self._further = further
        self._replaced: str | None = None
        self._wake = wake
        self.grace = GraceBudget(grace_s)
        self._told = False
        self._warned = False
        session.at_each_look, session.at_gate = self.send_notice, self.check

    def __repr__(self) -> str:
        return f"Preemption(rank {self._session.rank}, {self.grace!r})"

    @property
    def pending(self) -> bool:
        """Whether a SIGTERM has not been reported to the agent yet."""
        return self.grace.at is not None and not self._told

    def has_signal(self) -> bool:
        """Whether this process has received a SIGTERM."""
        return self.grace.at is not None

    def open(self) -> None:
        sigterm.listen(self._on_signal, self._further)

    def close(self) -> None:
        sigterm.ignore(self._on_signal)

    def hand_on(self) -> None:
        """After `close`, if the training has ended by itself: lets the signal take its usual effect."""
        if self.grace.at is not None and self._session.failure is None:
            log.warning(
                "rank %d got %s, and its training was over before the run stopped", self._session.rank, sigterm.heard
            )
            sigterm.hand_on()

    def wait_for_restart(self, node: str | None, environ: Mapping[str, str]) -> None:
        """Waits after the run was stopped because of `node`. If torchrun runs several nodes, it forms a new world
        without that node and ends this process: that may take up to 15 s. A process that ended earlier by itself
        would count as finished, and its training with it."""
        if node is None or self.has_signal() or not has_several_nodes(environ):
            return
        limit_s = min(RESTART_WAIT_S, self.grace.grace_s)
        log.warning(
            "rank %d waits %g s at most for torchrun to continue without the preempted node",
            self._session.rank,
            limit_s,
        )
        deadline = time.monotonic() + limit_s
        while not self.has_signal() and time.monotonic() < deadline:
            time.sleep(RESTART_LOOK_S)

    def _on_signal(self) -> None:
        """Called by the signal handler, between any two instructions."""
        self.grace.take()
        self._wake()

    def send_notice(self) -> None:
        """Tells the agent about a SIGTERM. Raises nothing: a lost message is repeated to the next agent."""
        self._look_at_saves()
        self._look_at_handler()
        if self._agreement.began is None:
            self.check(0)  # a wait may be long, without a boundary
        if not self.pending:
            return
        self._told = True
        notice = PreemptionNotice(sigterm.heard)
        self._session.send(self._session.inbox.repeat_to_agents("notice", notice))
        log.warning(
            "rank %d got %s: all ranks are asked to save in one step and to stop; a second SIGTERM ends it at once",
            self._session.rank,
            sigterm.heard,
        )
        self._warn()

    def check(self, step: int) -> None:
        """Before `step` is run: fails the worker if it is too late for a save."""
        grace, session = self.grace, self._session
        if grace.agree_by is None or self._agreement.is_ending or session.failure is not None:
            return
        agree_by = grace.agree_by
        if session.lost_ranks:
            agree_by = min(agree_by, max(session.lost_since, grace.at or 0.0) + REPLACED_S)
        if time.monotonic() < agree_by:
            session.next_look = min(session.next_look, agree_by)
            return
        if self._agreement.began is None:
            why = "and has not begun its first step: it ends, because there is nothing to save"
        elif session.lost_ranks:
            ranks = ", ".join(map(str, session.lost_ranks))
            why = (
                f"and no stop can be agreed without rank {ranks}, which is gone: it ends before step {step} without a "
                "save; the newest committed checkpoint remains"
            )
        else:
            why = (
                f"and the run has not agreed to stop: a save of {grace.save_s:.1f} s may not be finished before the "
                f"kill, so it ends before step {step} without one; the newest committed checkpoint remains"
            )
        text = f"rank {self._session.rank} got {sigterm.heard} {grace.waited_s:.1f} s ago {why}"
        session.failure = Preempted(text, step=step, waited_s=grace.waited_s)
        log.warning("%s", session.failure)

    def _look_at_handler(self) -> None:
        other = sigterm.replaced()
        if other is not None and other != self._replaced:
            log.warning(
                "the SIGTERM handler of instep.join was replaced by %s: a preemption is not noticed, and the run does "
                "not save before it; call run.handle_signals() after that handler is set, or give notice with 'instep "
                "stop'",
                other,
            )
        self._replaced = other

    def _look_at_saves(self) -> None:
        saved = self._session.inbox.saved
        if saved is not None and self.grace.saw_save(saved.id, saved.duration_s) and self._session.leads:
            self._warn()

    def _warn(self) -> None:
        """Warns once: the leader as soon as the shortage is known, a preempted rank at the latest then."""
        shortage = self.grace.shortage
        if shortage is not None and not self._warned:
            self._warned = True
            log.warning("%s", shortage)
