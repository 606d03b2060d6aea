"""A worker's part in a run: what the training loop calls.

A boundary with nothing pending reads a shared word and a clock; everything else is behind `_look_closer`. There is
no thread: nothing happens between boundaries, so a value never changes in the middle of a step.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Generic, Never, Self

from instep.errors import InstepError, StepError
from instep.names import DEFAULT_NAMESPACE, check_action_name
from instep.settings import DEFAULT_GRACE_S
from instep.text import one_line
from instep.worker import children
from instep.worker.agent_connection import AgentConnection
from instep.worker.agent_session import AgentSession
from instep.worker.agreement import Agreement, Config
from instep.worker.applier import Applier
from instep.worker.barrier import Barrier
from instep.worker.checkpoints import Checkpoints
from instep.worker.command_handlers import Action, Check, Restorer
from instep.worker.hyper import Codec
from instep.worker.preemption import Preemption
from instep.worker.replay import Replay
from instep.worker.slot import Layout, Slot, step_index

log = logging.getLogger("instep")

CHECK_S: Final = 1.0
"""How often a boundary checks the agent and sends reports."""
ETCD_PATIENCE_S: Final = 300.0
GOODBYE_S: Final = 8.0


class Run(Generic[Config]):
    """This worker's place in the run, from `instep.join`. Use it in the training thread only.

    `config` holds the agreed values: the same on every rank at every step, a new frozen object after each change.
    Before the first boundary it holds the newest agreed values; a worker that begins before the step from which they
    hold gets the ones before them at its first boundary.

    Promise: a change is applied by all ranks at the boundary before the same step, or by none. Limit: a rank that
    reaches the gate of a change that it has promised waits there while etcd cannot be read, at most `etcd_patience_s`.
    """

    def __init__(
        self,
        name: str,
        connection: AgentConnection,
        codec: Codec,
        *,
        rank: int,
        world_size: int,
        incarnation: str,
        namespace: str = DEFAULT_NAMESPACE,
        etcd_patience_s: float = ETCD_PATIENCE_S,
        grace_s: float = DEFAULT_GRACE_S,
        replay: Replay | None = None,
        max_restarts: int | None = None,
        take_over: bool = False,
        notice_signals: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.rank = rank
        self.world_size = world_size
        self._agreement: Agreement[Config] = Agreement(codec, replay)
        self._session = AgentSession(
            connection,
            self._agreement,
            rank=rank,
            world_size=world_size,
            incarnation=incarnation,
            max_restarts=max_restarts,
            take_over=take_over,
        )
        self.checkpoints = Checkpoints(
            self._session,
            self._agreement,
            run=name,
            namespace=namespace,
            next_step=self._next_step,
        )
        self._barrier = Barrier(self._session)
        self._preemption = Preemption(
            self._session,
            self._agreement,
            grace_s=grace_s,
            further=notice_signals,
            wake=self._look_soon,
        )
        self._applier = Applier(
            self._session,
            self._agreement,
            self._preemption,
            run=name,
            patience_s=etcd_patience_s,
            on_return=self._return_to,
            while_paused=self._while_paused,
        )
        self._drift = self._applier.drift
        self._ended = ""
        self._stopped: str | None = None
        # Read by every boundary: kept here to save an attribute look-up.
        self._next_gate = 0
        self._integers, self._floats = connection.words.integers, connection.words.floats
        self._step = -1
        self._seen = 0
        self._next_look = 0.0
        _alive.add(self)

    def __repr__(self) -> str:
        place = f"rank {self.rank} of {self.world_size}, view {self.view}, step {self._step}"
        return f"Run({self.name!r}, {place}, {self._ended or self._session.state})"

    # -- what a training script reads -------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The agreed values: a new frozen object after each change. In a forked child, such as a DataLoader worker,
        it keeps the values of the fork, and a warning says so once."""
        if self._ended == "forked":
            children.warn_of_copied_config(self._step)
        return self._agreement.config

    @property
    def view(self) -> int:
        """Number of the worker's view; it rises when workers are replaced."""
        return self._session.view

    @property
    def leads(self) -> bool:
        """Whether this worker leads the run, as of the last boundary. Not a lock: use the fencing token for that."""
        return self._session.leads

    @property
    def checkpoint_requested(self) -> bool:
        """Whether an operator, or a stop, requests a checkpoint of the current step: the same on every rank."""
        return self._agreement.directive.save_at == self._step

    @property
    def stopped(self) -> str | None:
        """Why the run has ended before its last step; None while it trains."""
        return self._stopped

    @property
    def paused(self) -> bool:
        """Whether this rank waits at a boundary until the run is resumed."""
        return self._applier.paused

    # -- what a training script calls -------------------------------------------------------------------------------

    def steps(self, stop: int, start: int = 0) -> Iterator[int]:
        """Yields the steps from `start` to `stop` - 1, each after its boundary.

        Ends early, on every rank before the same step, when the run is stopped: `stopped` then says why. Goes back when
        the run is taken back to a checkpoint.
        """
        step = start
        while step < stop:
            step = self.boundary(step)
            if self._stopped is not None or step >= stop:  # the run may have been taken to a later checkpoint
                return
            yield step
            step += 1

    def boundary(self, step: int) -> int:
        """Call before running `step`: agreed changes and commands apply here. Steps must rise from call to call.

        Returns the step to run now: `step`, or the one after the checkpoint that the run was taken back to. Afterwards
        look at `stopped`: when it is set, leave the loop without running the step. Waits here while the run is paused.

        Raises StepError (the step does not rise), Evicted (another process took this rank over), GateTimeout (etcd
        could not be read at a gate), and whatever an `on_change` function raises.
        """
        now = time.monotonic()
        if self._integers[0] != self._seen or step >= self._next_gate or now >= self._next_look or step <= self._step:
            step = self._look_closer(step, now)
            now = time.monotonic()
        self._step = self._integers[1] = step
        self._floats[2] = now
        return step

    def on_change(self, function: Callable[[Config, Config], object]) -> Callable[[Config, Config], object]:
        """Calls `function(old, new)` at the boundary where a change is applied, in the training thread, in order of
        registration. Usable as a decorator. An exception of the function leaves `boundary`: the rank has then
        failed."""
        self._agreement.on_change(function)
        return function

    def action(self, name: str) -> Callable[[Action], Action]:
        """Declares what `instep act RUN NAME` does: the decorated function is called without arguments, in the
        training thread of every rank, at the boundary before the same step. An exception leaves `boundary`.

        Declare the same actions on all ranks: a rank that does not know the action declines it for all. Limit: a
        rank that replaces another one between the agreement and that step does not run it.
        """
        check_action_name(name)

        def declare(function: Action) -> Action:
            self._agreement.handlers.declare(name, function)
            return function

        return declare

    def on_restore(self, function: Restorer, *, check: Check | None = None) -> Restorer:
        """Calls `function(manifest)` when the run is taken back to a checkpoint, on every rank before the same step.

        Training continues with the step after the checkpoint. Usable as a decorator. An exception leaves `boundary`.
        `check(manifest)` is called earlier, on every rank, and returns what is wrong with the checkpoint: then the
        command is declined with that reason, and no rank goes back.
        """
        self._agreement.handlers.on_restore(function, check)
        return function

    def checkpoint(
        self, step: int, *, folder: str | os.PathLike[str] = "checkpoints", layout: Layout = "custom"
    ) -> AbstractContextManager[Slot | None]:
        """`with run.checkpoint(step) as slot`: on the leading rank, a slot for the state after `step`; on all others
        None. At the end of the block the slot is committed, or abandoned if the block has raised.

        Promise: only committed checkpoints are listed or resumed from. Raises Fenced if another rank leads since the
        slot was opened: training may continue, and that rank saves the next one. Raises CheckpointError for an error
        of the file system. If etcd does not answer in 5 s, the node's agent continues to commit in the background.
        Limit: if the lead moves between the calls of two ranks, a step may be saved by none of them.
        """
        return self.checkpoints.checkpoint(step, folder, layout)

    def barrier(self, name: str, timeout_s: float = 300.0) -> None:
        """Waits until all ranks have called it with this name, as often as this one has. Ranks that have ended
        cleanly are not waited for; for a rank that has died, its replacement must call it.

        Use it within a step, or before the first. Plans are answered during the wait, and apply at the next
        boundary.

        Promise: no rank continues before all have arrived. Limit: a rank that gives up at the moment of the last
        arrival may be counted; if it calls again with the same name, it continues at once. Ranks that had arrived on
        a vanished node count until its lease ends. Raises BarrierTimeout, with the missing ranks, within `timeout_s`
        and 3 seconds; Evicted; SettingsError for an invalid name or time.
        """
        self._check_here()
        try:
            self._barrier.meet(name, timeout_s, self._step + 1, self._show_life)
        finally:
            self._next_look = 0.0

    def handle_signals(self) -> None:
        """Installs the handlers of preemption signals again: call it in the main thread, after a framework (Lightning,
        for one) has installed its own. The framework's handler of SIGTERM is called at the second signal."""
        self._check_here()
        self._preemption.open()

    def report(self, **metrics: object) -> None:
        """The latest figures for operators, tuner and front ends: numbers, or tensors of one element.

        Never waits: the newest values are sent at a boundary, at most once a second, or dropped if the agent does
        not read them. Reading a GPU tensor when it is sent waits for the work queued there, at most once a second.
        """
        self._session.reports.update(metrics)

    def close(self, *, clean: bool = True) -> None:
        """Leaves the run. Cleanly means: this worker runs no more steps, so no change waits for it.

        If a SIGTERM came too late to stop the run, the signal then has the effect that it had before `join`: usually
        it ends the process.
        """
        self._close(clean, None)

    def _close(self, clean: bool, error: BaseException | None) -> None:
        if self._ended == "closed":
            return
        is_over = not self._ended and clean and error is None and self._stopped is None
        try:
            if not self._ended and clean:
                self.checkpoints.finish()
        finally:
            if not self._ended:
                self.checkpoints.settle(min(GOODBYE_S, self._preemption.grace.settling_s))
                timeout_s = min(GOODBYE_S, self._preemption.grace.goodbye_s)
                self._session.leave(self._step, clean=clean, error=error, timeout_s=timeout_s)
            if clean and error is None and self._stopped is not None:
                self._preemption.wait_for_restart(self._agreement.directive.node, os.environ)
            self._end("closed")
        if is_over:
            self._preemption.hand_on()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        done = isinstance(error, SystemExit) and not error.code  # a script may end itself in the block
        self._close(kind is None or done, error)

    # -- the boundary, when there is something to do ------------------------------------------------------------------

    def _look_closer(self, step: int, now: float) -> int:
        step = step_index(step)
        self._check_usable(step)
        session = self._session
        session.messages_seen, session.next_look = self._integers[0], now + CHECK_S
        try:
            self._applier.begin(step)
            self._applier.look_for_drift()
            session.exchange(step)
            self._preemption.check(step)
            self.checkpoints.look()
            step = self._applier.pass_gates(step)
        finally:
            self._seen, self._next_look = session.messages_seen, session.next_look
            if self._preemption.pending:  # it arrived during this look
                self._next_look = 0.0
            self._next_gate = self._agreement.next_gate
        if session.failure is not None:
            self._next_look = 0.0
            raise session.failure
        directive = self._agreement.directive
        if directive.is_over(step):
            self._stopped = one_line(directive.reason or "the run was stopped")
            log.warning("rank %d ends before step %d: %s", self.rank, step, self._stopped)
        return step

    def _look_soon(self) -> None:
        """Called in the signal handler."""
        self._next_look = 0.0

    def _next_step(self) -> int:
        """The first step that has not begun."""
        self._check_here()
        return self._step + 1

    def _check_here(self) -> None:
        if self._ended == "forked":
            raise InstepError("this run was joined by the parent process: a forked child cannot step it")
        if self._ended == "closed":
            raise InstepError(f"the run {self.name!r} was left: join again before the next step")

    def _check_usable(self, step: int) -> None:
        self._check_here()
        if self._stopped is not None:
            raise StepError(f"the run was stopped before step {self._step}: leave the loop when run.stopped is set")
        if step <= self._step:
            raise StepError(f"step {step} follows step {self._step}: steps must increase")

    def _return_to(self, step: int) -> None:
        """The run was taken back to a checkpoint: `step` runs next."""
        self._step = self._integers[1] = step - 1

    def _while_paused(self) -> None:
        self.checkpoints.look()
        self._show_life()

    def _show_life(self) -> None:
        """A rank that waits on purpose has not stalled."""
        self._floats[2] = time.monotonic()

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self, how: str) -> None:
        """Releases the agent; the next boundary raises the reason."""
        if how == "closed":
            self._preemption.close()
        self._ended = how
        self._next_look = 0.0
        self._integers, self._floats = _NOWHERE
        self._session.close()

    def __reduce__(self) -> Never:
        raise InstepError(
            "a Run belongs to the process that joined it and cannot be sent to another one: give that process the "
            "values that it needs, and let changes act in the training process (docs/howto/data-loaders.md)"
        )

    def _became_child(self) -> None:
        """In a forked child: releases the parent's socket. The run cannot be used any more."""
        if self._ended != "closed":
            self._end("forked")


_NOWHERE = (memoryview(bytearray(32)).cast("q"), memoryview(bytearray(32)).cast("d"))
_alive: weakref.WeakSet[Run[Any]] = weakref.WeakSet()


def _forget_runs_in_child() -> None:
    for run in list(_alive):
        run._became_child()


os.register_at_fork(after_in_child=_forget_runs_in_child)
