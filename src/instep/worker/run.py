"""A worker's part in a run: what the training loop calls.

A step boundary with nothing pending is a look at a shared word and a clock; everything else is behind `_look_closer`.
There is no thread: nothing happens between boundaries, so a value never changes in the middle of a step.
"""

from __future__ import annotations

import operator
import os
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Self

from instep.errors import InstepError, StepError
from instep.worker.agreement import Agreement, Config
from instep.worker.conversation import Conversation
from instep.worker.gate import NEVER, Apply
from instep.worker.hyper import Codec
from instep.worker.link import AgentLink

CHECK_S: Final = 1.0
"""How often a boundary looks whether the agent still lives, and sends what was reported."""
ETCD_PATIENCE_S: Final = 300.0


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
        link: AgentLink,
        codec: Codec,
        *,
        rank: int,
        world_size: int,
        incarnation: str,
        etcd_patience_s: float = ETCD_PATIENCE_S,
    ) -> None:
        self.name = name
        self.rank = rank
        self.world_size = world_size
        self._agreement: Agreement[Config] = Agreement(codec)
        self._conversation = Conversation(
            link, self._agreement, rank=rank, world_size=world_size, incarnation=incarnation
        )
        self._patience_s = etcd_patience_s
        self._ended = ""
        # What every boundary looks at is kept here, not one object further away.
        self._gate = self._agreement.gate
        self._integers, self._floats = link.words.integers, link.words.floats
        self._step = -1
        self._mail = 0
        self._next_look = 0.0
        _alive.add(self)

    def __repr__(self) -> str:
        place = f"rank {self.rank} of {self.world_size}, view {self.view}, step {self._step}"
        return f"Run({self.name!r}, {place}, {self._ended or self._conversation.standing})"

    # -- what a training script reads -------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The agreed values: a new frozen object after each change."""
        return self._agreement.config

    @property
    def view(self) -> int:
        """Number of the view this worker is in; it rises when workers are replaced."""
        return self._conversation.view

    @property
    def leads(self) -> bool:
        """Whether this worker leads the run, as of the last boundary. Not a lock: use the fencing token for that."""
        return self._conversation.leads

    # -- what a training script calls -------------------------------------------------------------------------------

    def steps(self, stop: int, start: int = 0) -> Iterator[int]:
        """Yields the steps from `start` to `stop` - 1, each after its boundary."""
        for step in range(start, stop):
            self.boundary(step)
            yield step

    def boundary(self, step: int) -> None:
        """Call before running `step`: agreed changes apply here. Steps must rise from call to call.

        Raises StepError (the step does not rise), Evicted (another process took this rank over), GateTimeout (etcd
        could not be read at a gate), and whatever an `on_change` function raises.
        """
        now = time.monotonic()
        if (
            self._integers[0] != self._mail
            or step >= self._gate.next_gate
            or now >= self._next_look
            or step <= self._step
        ):
            self._look_closer(step, now)
        self._step = self._integers[1] = step
        self._floats[2] = now

    def on_change(self, function: Callable[[Config, Config], object]) -> Callable[[Config, Config], object]:
        """Calls `function(old, new)` at the boundary where a change is applied, in the training thread, in order of
        registration. Usable as a decorator. What it raises leaves `boundary`: the rank has then failed."""
        self._agreement.on_change(function)
        return function

    def report(self, **metrics: object) -> None:
        """Latest figures for operators, tuner and front ends: numbers, or tensors of one element.

        Never waits: the newest values are sent at a boundary, at most once a second, or dropped when nobody takes
        them. Reading a tensor on a GPU when it is sent waits for the work queued there, once a second at most.
        """
        self._conversation.reports.update(metrics)

    def close(self, *, clean: bool = True) -> None:
        """Leaves the run. Cleanly means: this worker runs no more steps, so no change waits for it."""
        if self._ended == "closed":
            return
        if not self._ended:
            self._conversation.leave(self._step, clean=clean)
        self._end("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(clean=kind is None)

    # -- the boundary, when there is something to do ------------------------------------------------------------------

    def _look_closer(self, step: int, now: float) -> None:
        step = _index(step)
        self._check_usable(step)
        conversation = self._conversation
        conversation.mail, conversation.next_look = self._integers[0], now + CHECK_S
        try:
            conversation.tell(self._agreement.begin(step))
            conversation.exchange(step)
            self._pass_gates(step)
        finally:
            self._mail, self._next_look = conversation.mail, conversation.next_look
        if conversation.failure is not None:
            self._next_look = 0.0
            raise conversation.failure

    def _check_usable(self, step: int) -> None:
        if self._ended == "forked":
            raise InstepError("this run was joined by the parent process: a forked child cannot step it")
        if self._ended == "closed":
            raise InstepError(f"the run {self.name!r} was left: join again before the next step")
        if step <= self._step:
            raise StepError(f"step {step} follows step {self._step}: the steps given to a run must rise")

    def _pass_gates(self, step: int) -> None:
        """A worker that has failed runs no step, so it has no gate to pass."""
        while self._conversation.failure is None and (due := self._gate.at(step)) is not None:
            if isinstance(due, Apply):
                self._apply(due, step)
            else:
                self._await_decision(due.number, step)
            self._conversation.tell(self._agreement.hear_postponed(step))

    def _apply(self, due: Apply, step: int) -> None:
        self._conversation.tell([self._agreement.apply(due, step)])

    def _await_decision(self, number: int, step: int) -> None:
        self._conversation.await_decision(number, step, self._patience_s)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self, how: str) -> None:
        """Lets go of the agent; the next boundary says why there can be none."""
        self._ended = how
        self._next_look = 0.0
        self._integers, self._floats = _NOWHERE
        self._conversation.close()

    def _became_child(self) -> None:
        """In a forked child: let go of the parent's socket, and be of no further use."""
        if self._ended != "closed":
            self._end("forked")


def _index(step: object) -> int:
    try:
        number = operator.index(step)  # type: ignore[arg-type]  # that is what is tried
    except TypeError:
        raise StepError(f"a step is a whole number, not {step!r}") from None
    if not 0 <= number < NEVER:
        raise StepError(f"step {number} is out of range: steps are counted from 0 to {NEVER - 1}")
    return number


_NOWHERE = (memoryview(bytearray(32)).cast("q"), memoryview(bytearray(32)).cast("d"))
_alive: weakref.WeakSet[Run[Any]] = weakref.WeakSet()


def _forget_runs_in_child() -> None:
    for run in list(_alive):
        run._became_child()


os.register_at_fork(after_in_child=_forget_runs_in_child)
