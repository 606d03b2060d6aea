"""A worker's part in a run: what the training loop calls.

A step boundary with nothing pending is a look at a shared word and a clock; everything else is behind `_look_closer`.
There is no thread: nothing happens between boundaries, so a value never changes in the middle of a step.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Self

from typing_extensions import TypeVar

from instep.errors import Evicted, GateTimeout, InstepError, JoinRefused, StepError
from instep.scalar import Scalar
from instep.wire import PROTOCOL, Message
from instep.worker.failure import failure_from
from instep.worker.gate import NEVER, Answer, Apply, Gate
from instep.worker.hyper import Codec
from instep.worker.link import AgentLink, LinkLost
from instep.worker.pulse import Pulse
from instep.worker.reports import Reports

log = logging.getLogger("instep")

CHECK_S: Final = 1.0
"""How often a boundary looks whether the agent still lives, and sends what was reported."""
ETCD_PATIENCE_S: Final = 300.0
GOODBYE_S: Final = 8.0

Config = TypeVar("Config", default=Any)


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker starts its first view with: `previous` before step `gate`, `values` from it on."""

    values: Mapping[str, Scalar]
    plan: int
    gate: int | None
    previous: Mapping[str, Scalar] | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Start:
        return cls(document["values"], document["plan"], document.get("gate"), document.get("previous"))


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
        self.config: Config
        self._link = link
        self._codec = codec
        self._incarnation = incarnation
        self._patience_s = etcd_patience_s
        self._values: dict[str, Scalar] = {}
        self._gate = Gate()
        self._prepared: tuple[int, Config] | None = None
        self._postponed: Message | None = None
        self._start: Start | None = None
        self._callbacks: list[Callable[[Config, Config], object]] = []
        self._reports = Reports()
        self._pulse = Pulse()
        self._applied: tuple[int, int] | None = None
        self._view = 0
        self._leads = False
        self._failure: InstepError | None = None
        self._state = "joining"
        self._integers, self._floats = link.words.integers, link.words.floats
        self._step = -1
        self._mail = 0
        self._next_look = 0.0
        _alive.add(self)

    def __repr__(self) -> str:
        place = f"rank {self.rank} of {self.world_size}, view {self._view}, step {self._step}"
        return f"Run({self.name!r}, {place}, {self._state})"

    # -- what a training script reads -------------------------------------------------------------------------------

    @property
    def view(self) -> int:
        """Number of the view this worker is in; it rises when workers are replaced."""
        return self._view

    @property
    def leads(self) -> bool:
        """Whether this worker leads the run, as of the last boundary. Not a lock: use the fencing token for that."""
        return self._leads

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
        self._callbacks.append(function)
        return function

    def report(self, **metrics: object) -> None:
        """Latest figures for operators, tuner and front ends: numbers, or tensors of one element.

        Never waits: the newest values are sent at a boundary, at most once a second, or dropped when nobody takes
        them. Reading a tensor on a GPU when it is sent waits for the work queued there, once a second at most.
        """
        self._reports.update(metrics)

    def close(self, *, clean: bool = True) -> None:
        """Leaves the run. Cleanly means: this worker runs no more steps, so no change waits for it."""
        if self._state == "closed":
            return
        if self._state != "forked":
            self._say_goodbye(clean)
        self._state = "closed"
        self._next_look = 0.0
        self._integers, self._floats = _NOWHERE
        self._link.close()

    def _say_goodbye(self, clean: bool) -> None:
        """A rank that nobody knows to have left would be waited for in every later change: worth a moment.

        An agent that dies now takes what it has not read with it, so its answer is waited for.
        """
        leave = {"t": "leave", "clean": clean, "step": self._step}
        if not self._view or self._state != "training":
            with contextlib.suppress(LinkLost):
                self._link.send(leave)
            return
        deadline = time.monotonic() + GOODBYE_S
        answered, lost = False, True
        while lost and not answered and (left_s := deadline - time.monotonic()) > 0:
            try:
                if not self._link.connected:
                    self._link.wait_connected(left_s)
                    self._introduce()
                self._link.send(leave)
                answered, lost = self._link.wait_message("bye", left_s), False
            except LinkLost:
                pass  # the agent died before it answered: the next one hears it
            except InstepError as error:
                log.warning("%s", error)
                lost = False
        if not answered:
            log.warning("rank %d left, and no agent has answered", self.rank)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(clean=kind is None)

    # -- joining ----------------------------------------------------------------------------------------------------

    def _hello(self) -> Message:
        return {
            "t": "hello",
            "protocol": PROTOCOL,
            "rank": self.rank,
            "world_size": self.world_size,
            "incarnation": self._incarnation,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "schema": self._codec.document,
            "view": self._view,
            "undecided": self._gate.undecided,
        }

    def _introduce(self) -> None:
        """After each (re)connection: who this is, and what it has applied that its old agent may not have told."""
        self._link.introduce(self._hello())
        if self._applied is not None:
            self._link.send({"t": "applied", "n": self._applied[0], "step": self._applied[1]})

    def _is_joined(self) -> bool:
        if self._failure is not None:
            raise self._failure
        return self._view > 0

    def _enter_view(self, message: Message) -> None:
        number = int(message["view"])
        first = self._view == 0
        self._view, self._state = number, "training"
        self._link.node = str(message.get("node", ""))
        if not first:
            return
        self._start = start = Start.of(message["start"])
        self._gate.start(start.plan)
        self._values = dict(start.values)
        self.config = self._codec.decode(self._values)

    # -- the boundary, when there is something to do ------------------------------------------------------------------

    def _look_closer(self, step: int, now: float) -> None:
        step = _index(step)
        self._check_usable(step)
        self._next_look = now + CHECK_S
        if self._start is not None:
            self._begin(self._start, step)
            self._hear_postponed(step)
        self._exchange(step)
        while self._failure is None and (due := self._gate.at(step)) is not None:
            if isinstance(due, Apply):
                self._apply(due.number, due.values, step)
            else:
                self._await_decision(due.number, step)
            self._hear_postponed(step)
        if self._failure is not None:
            self._next_look = 0.0
            raise self._failure

    def _check_usable(self, step: int) -> None:
        if self._state == "forked":
            raise InstepError("this run was joined by the parent process: a forked child cannot step it")
        if self._state == "closed":
            raise InstepError(f"the run {self.name!r} was left: join again before the next step")
        if step <= self._step:
            raise StepError(f"step {step} follows step {self._step}: the steps given to a run must rise")

    def _begin(self, start: Start, step: int) -> None:
        """The first boundary: only now is it known on which side of the last agreed gate this worker begins."""
        self._start = None
        if start.gate is None or start.previous is None:
            return
        if step < start.gate:
            self._use(start.previous, None)
            self._gate.inherit(start.plan, start.gate, start.values)
        else:
            self._tell_applied(start.plan, step)

    def _exchange(self, step: int) -> None:
        """Hears what the agent has said and sends what waits; a lost agent is replaced without waiting for it."""
        self._mail = self._integers[0]
        try:
            if not self._link.connected:
                if not self._link.try_connect():
                    self._next_look = min(self._next_look, time.monotonic() + 0.1)
                    return
                log.warning("rank %d has a new agent on its node", self.rank)
                self._introduce()
            self._hear(self._link.receive(), step)
            self._reports.send_to(self._link, step)
            self._link.flush()
            self._replace_stopped_agent()
        except LinkLost as lost:
            log.warning("rank %d lost its agent (%s): training goes on, another is started", self.rank, lost)
            self._next_look = 0.0

    def _hear(self, messages: list[Message], step: int) -> None:
        for message in messages:
            match message["t"]:
                case "welcome" | "view":
                    self._enter_view(message)
                    self._link.calm()
                case "plan":
                    self._hear_plan(message, step)
                case "decision":
                    self._gate.hear_decision(message["n"], message["commit"])
                    if self._postponed is not None and self._postponed["n"] == message["n"]:
                        self._postponed = None  # decided without this worker, so aborted: nothing to promise
                    self._hear_postponed(step)
                case "try":
                    refused = self._codec.refusals(message["values"], message["base"], message["groups"])
                    with contextlib.suppress(LinkLost):  # the next agent asks again
                        self._link.send({"t": "tried", "n": message["n"], "refused": refused})
                case "leads":
                    self._leads = message["leads"]
                case "failure":
                    self._hear_failure(failure_from(message, self.rank))
                case "note":
                    log.log(message["level"], "%s", message["text"])
                case _:
                    pass  # from a newer agent; PROTOCOL guards against what must be understood

    def _hear_failure(self, failure: InstepError) -> None:
        """An agent that cannot work ends a join, but never a training that has begun."""
        if self._view and not isinstance(failure, Evicted | JoinRefused):
            log.warning("rank %d: %s; training goes on, changes wait", self.rank, failure)
            return
        self._failure = failure
        if isinstance(failure, Evicted):
            self._state = "evicted"

    def _hear_postponed(self, step: int) -> None:
        if self._postponed is None:
            return
        message, self._postponed = self._postponed, None
        try:
            self._hear_plan(message, step)
        except LinkLost:
            self._next_look = 0.0  # the next agent tells the plan again

    def _hear_plan(self, message: Message, step: int) -> None:
        if self._start is not None:
            self._postponed = message  # not before it is known on which side of the last gate this worker begins
            return
        number, values = message["n"], message["values"]
        answer = self._gate.hear_plan(number, message["gate"], values, step)
        if answer is Answer.LATER:
            self._postponed = message
        elif answer is Answer.LATE:
            self._link.send({"t": "late", "n": number, "step": step})
        elif answer is Answer.ARMED:
            problems = self._codec.problems(self._values, values)
            if problems:
                self._link.send({"t": "refused", "n": number, "problems": problems})
                return
            self._prepared = (number, self._codec.decode({**self._values, **values}))
            self._link.send({"t": "armed", "n": number})

    def _apply(self, number: int, values: Mapping[str, Scalar], step: int) -> None:
        prepared, self._prepared = self._prepared, None
        self._use({**self._values, **values}, prepared[1] if prepared and prepared[0] == number else None)
        self._tell_applied(number, step)

    def _tell_applied(self, number: int, step: int) -> None:
        self._applied = (number, step)
        try:
            self._link.send({"t": "applied", "n": number, "step": step})
        except LinkLost:
            self._next_look = 0.0  # told again after the next introduction

    def _use(self, values: Mapping[str, Scalar], prepared: Config | None) -> None:
        """From here on these values hold: decoded, told to whoever asked to be told."""
        self._values = dict(values)
        old, self.config = self.config, prepared if prepared is not None else self._codec.decode(self._values)
        for function in self._callbacks:
            function(old, self.config)

    def _await_decision(self, number: int, step: int) -> None:
        """Waits at a gate until plan `number` is decided: for etcd, never for another rank."""
        started = time.monotonic()
        say_at = started + 0.5
        asked = False
        while number == self._gate.undecided and self._failure is None:
            waited_s = time.monotonic() - started
            if waited_s >= self._patience_s:
                raise GateTimeout(
                    f"rank {self.rank} waited {waited_s:.0f} s before step {step} for the decision on change {number}: "
                    "etcd cannot be read; bring it back and restart the run, nothing was guessed",
                    step=step,
                    waited_s=waited_s,
                )
            if time.monotonic() >= say_at:
                log.warning("rank %d waits before step %d: etcd has not answered for %.1f s", self.rank, step, waited_s)
                say_at += 10.0
            try:
                if not self._link.connected:
                    self._link.wait_connected(min(2.0, self._patience_s))
                    self._introduce()
                    asked = False
                if not asked:
                    self._link.send({"t": "gate", "n": number, "step": step})
                    asked = True
                self._link.wait_readable(0.25)
                self._mail = self._integers[0]
                self._hear(self._link.receive(), step)
                self._replace_stopped_agent()
            except LinkLost:
                continue
            except InstepError as error:
                log.warning("%s", error)

    def _replace_stopped_agent(self) -> None:
        if self._link.connected and self._pulse.is_stopped(self._link.words.beat, time.monotonic()):
            log.warning("the agent of rank %d is stopped or stuck: replacing it", self.rank)
            self._link.kill_agent()

    def _became_child(self) -> None:
        """In a forked child: let go of the parent's socket, and be of no further use."""
        if self._state == "closed":
            return
        self._state = "forked"
        self._next_look = 0.0
        self._integers, self._floats = _NOWHERE
        self._link.close()


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
