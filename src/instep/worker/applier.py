"""Carries out what is due before a step: decisions to wait for, changes and commands to apply, a pause."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from instep.scalar import Scalar, format_scalar, same
from instep.worker.agent_session import AgentSession
from instep.worker.agreement import Agreement, Paused
from instep.worker.gate import Apply
from instep.worker.preemption import Preemption
from instep.worker.reports import DriftWatch

log = logging.getLogger("instep")

PAUSED_LISTEN_S: Final = 0.5
"""How long a paused rank waits for a message before it looks around."""


class Applier:
    """`on_return(step)` is called when the run is taken back to a checkpoint, with the step to run next. `while_paused`
    is called between two looks of a paused rank. `paused`: whether this rank waits until the run is resumed."""

    def __init__(
        self,
        session: AgentSession,
        agreement: Agreement[Any],
        preemption: Preemption,
        *,
        run: str,
        patience_s: float,
        on_return: Callable[[int], None],
        while_paused: Callable[[], None],
    ) -> None:
        self._session = session
        self._agreement = agreement
        self._preemption = preemption
        self._run = run
        self._patience_s = patience_s
        self._on_return = on_return
        self._while_paused = while_paused
        self.drift = DriftWatch(session.rank)
        self.paused = False

    def __repr__(self) -> str:
        return f"Applier(rank {self._session.rank}, {self._agreement!r})"

    def begin(self, step: int) -> None:
        """Before the first step: takes the values on its side of the last agreed gate. Later it only applies the
        schedule, if there is one."""
        before = self._agreement.values
        self._session.send(*self._agreement.begin(step))
        if self._agreement.values != before:
            self._log_new_values(before, f"from step {step} on, values differ from those before")

    def look_for_drift(self) -> None:
        """Checks the bound values, and corrects the receipt of the newest change."""
        if not self.drift:
            return
        self._session.drift = self.drift.look()
        applied = self._agreement.applied
        if applied is not None and (corrected := self.drift.corrected(applied)) != applied:
            self._agreement.applied = corrected
            self._session.send(corrected)

    def pass_gates(self, step: int) -> int:
        """The step to run. A failed worker runs none, so it passes no gate."""
        session = self._session
        while session.failure is None and (due := self._agreement.due(step)) is not None:
            if isinstance(due, Apply):
                step = self._apply(due, step)
            elif isinstance(due, Paused):
                self._wait_while_paused(step)
            else:
                self._await_decision(due.number, step)
            session.send(*self._agreement.answer_postponed(step))
            self._preemption.check(step)
        self.paused = False
        return step

    def _apply(self, due: Apply, step: int) -> int:
        before = self._agreement.values
        next_step = self._agreement.apply(due, step)
        if due.values:
            self._log_new_values(before, f"change {due.number} applies from step {step} on all ranks")
        if next_step != step:
            log.warning("rank %d goes back from step %d to step %d", self._session.rank, step, next_step)
            self._on_return(next_step)
        applied = self._agreement.applied
        if applied is not None and self.drift:
            # A value that something else overwrites is usually overwritten again: the next boundary checks.
            applied = self._agreement.applied = self.drift.receipt(applied, due.values)
            self._session.next_look = 0.0
        if applied is not None:
            self._session.send(applied)
        return next_step

    def _await_decision(self, number: int, step: int) -> None:
        self._session.await_decision(number, step, self._patience_s)

    def _wait_while_paused(self, step: int) -> None:
        """Processes messages once, while the run is paused before `step`."""
        if not self.paused:
            self.paused = True
            reason = self._agreement.directive.reason or "the run is paused"
            log.warning(
                "rank %d waits before step %d: %s; 'instep resume %s' continues it",
                self._session.rank,
                step,
                reason,
                self._run,
            )
        self._session.listen(step, PAUSED_LISTEN_S)
        self._while_paused()

    def _log_new_values(self, before: Mapping[str, Scalar], what: str) -> None:
        """Rank 0 logs for all ranks: they apply the same values before the same step."""
        if self._session.rank == 0:
            changes = [
                f"{name} {format_scalar(before[name]) if name in before else 'unset'} -> {format_scalar(value)}"
                for name, value in self._agreement.values.items()
                if name not in before or not same(before[name], value)
            ]
            log.info("%s: %s", what, ", ".join(changes) or "its values were already in effect")
