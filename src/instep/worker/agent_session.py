"""What a worker and its node's agent say to each other, over a connection that may be lost at any moment."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

from instep.errors import Evicted, GateTimeout, InstepError, JoinRefused
from instep.wire import messages as wire
from instep.worker.agent_connection import AgentConnection, ConnectionLost, LivenessDetector
from instep.worker.agreement import Agreement
from instep.worker.checkpoint_inbox import CheckpointInbox
from instep.worker.failure import failure_from, in_words
from instep.worker.place import elastic
from instep.worker.reports import Reports

log = logging.getLogger("instep")

RECONNECT_S: Final = 0.1
LISTEN_S: Final = 0.25
"""Pause between two looks at a condition while the agent sends nothing."""
PATIENCE_S: Final = 3.0
WARN_EVERY_S: Final = 10.0
"""A worker that waits reports a missing agent after `PATIENCE_S`, and again every `WARN_EVERY_S`."""


class AgentSession:
    """Introduces this worker to each agent, passes messages to the agreement, and keeps the rest: `view` (0 before
    the first), `leads`, and the `failure` that ends the run.

    Only `await_decision`, `listen`, `wait_until` and `leave` wait, each with a bound. `messages_seen` is the shared
    count of messages before the last read of the socket. `next_look` is the latest time of the next look, in seconds
    on the monotonic clock.
    """

    def __init__(
        self,
        connection: AgentConnection,
        agreement: Agreement[Any],
        *,
        rank: int,
        world_size: int,
        incarnation: str,
        max_restarts: int | None = None,
        take_over: bool = False,
    ) -> None:
        self._connection = connection
        self._agreement = agreement
        self.rank = rank
        self.world_size = world_size
        self._incarnation = incarnation
        self._max_restarts = max_restarts
        self._take_over = take_over
        self._liveness = LivenessDetector()
        self._apart_since = self._warn_at = 0.0
        self.reports = Reports()
        self.view = 0
        self.token = 0
        """The fencing token while this worker leads, else 0."""
        self.candidate = ""
        self.inbox = CheckpointInbox()
        self.lost_ranks: tuple[int, ...] = ()
        """After a SIGTERM: ranks of the run that are gone and not replaced."""
        self.lost_since = 0.0
        self._status: wire.WorkerStatus | None = None
        self.drift: tuple[str, ...] = ()
        """Hyperparameters that this rank does not train with as agreed."""
        self.failure: InstepError | None = None
        self.messages_seen = 0
        self.next_look = 0.0
        self.at_each_look: Callable[[], None] = lambda: None
        """Called at each look at the agent, also in every wait."""
        self.at_gate: Callable[[int], None] = lambda step: None
        """Called in the wait for a decision; may set `failure`."""

    def __repr__(self) -> str:
        return f"AgentSession(rank {self.rank}, view {self.view}, {self._connection!r})"

    @property
    def state(self) -> Literal["joining", "training", "evicted"]:
        if isinstance(self.failure, Evicted):
            return "evicted"
        return "training" if self.view else "joining"

    @property
    def leads(self) -> bool:
        """Whether this worker leads the run, as last reported."""
        return self.token > 0

    def is_joined(self) -> bool:
        """Raises the failure, if there is one."""
        if self.failure is not None:
            raise self.failure
        return self.view > 0

    # -- sending ----------------------------------------------------------------------------------------------------

    def introduce(self) -> None:
        """After each connection: introduces the worker and repeats what the former agent may not have processed."""
        self._connection.introduce(self._hello())
        self._liveness = LivenessDetector()  # the old beat is the former agent's
        self._apart_since = self._warn_at = 0.0
        self._status = None
        self.lost_ranks = ()
        self.token = 0  # until this agent confirms it
        for fact in (self._agreement.began, self._agreement.applied):
            if fact is not None:
                self._connection.send(fact)
        for message in self.inbox.unanswered():
            self._connection.send(message)

    def _hello(self) -> wire.Hello:
        agreement = self._agreement
        return wire.Hello(
            rank=self.rank,
            world_size=self.world_size,
            incarnation=self._incarnation,
            host=socket.gethostname(),
            pid=os.getpid(),
            schema=agreement.schema,
            view=self.view,
            undecided=agreement.gate.undecided,
            agreed=agreement.agreed,
            told=agreement.undecided,
            heard=agreement.gate.newest,
            epoch=agreement.epoch,
            max_restarts=self._max_restarts,
            elastic=elastic(os.environ),
            take_over=self._take_over,
        )

    def send(self, *messages: wire.FromWorker) -> None:
        """Sends messages. Those that are lost are repeated to the next agent, which the next boundary looks for."""
        for message in messages:
            try:
                self._connection.send(message)
            except ConnectionLost:
                self.next_look = 0.0

    def exchange(self, step: int) -> None:
        """Processes messages and sends what is queued. Replaces a lost agent without waiting for it."""
        self.at_each_look()
        try:
            if not self._connection.connected:
                if not self._connection.try_connect():
                    self.next_look = min(self.next_look, time.monotonic() + RECONNECT_S)
                    return
                log.warning("rank %d has a new agent on its node", self.rank)
                self.introduce()
            self._exchange(step)
        except ConnectionLost as lost:
            log.warning("rank %d lost its agent (%s): training continues, another is started", self.rank, lost)
            self.token = 0  # it led by the agent's lease
            self.next_look = 0.0

    def _exchange(self, step: int) -> None:
        self.process(self._connection.receive(), step)
        self._send_status()
        self.reports.send_to(self._connection)
        self._connection.flush()
        self.replace_stopped_agent()

    def _send_status(self) -> None:
        """Sends what operators can ask of this worker, if it has changed."""
        actions, restores = self._agreement.handlers.offer
        status = wire.WorkerStatus(actions, restores, self.drift)
        if status != self._status:
            self._connection.send(status)
            self._status = status

    def await_decision(self, number: int, step: int, patience_s: float) -> None:
        """Waits at a gate until plan `number` is decided: for etcd, never for another rank. Raises GateTimeout."""
        started = time.monotonic()
        say_at = started + 0.5
        asked = False
        while number == self._agreement.gate.undecided and self.failure is None:
            self.at_each_look()
            self.at_gate(step)
            waited_s = time.monotonic() - started
            if waited_s >= patience_s:
                raise _gate_timeout(self.rank, number, step, waited_s)
            if time.monotonic() >= say_at:
                log.warning("rank %d waits before step %d: etcd has not answered for %.1f s", self.rank, step, waited_s)
                say_at += 10.0
            try:
                if not self._connection.connected:
                    self._connection.wait_connected(min(2.0, patience_s))
                    self.introduce()
                    asked = False
                if not asked:
                    self._connection.send(self._agreement.at_gate(number, step))
                    asked = True
                self._connection.wait_readable(0.25)
                self.messages_seen = self._connection.words.messages
                self.process(self._connection.receive(), step)
                self.replace_stopped_agent()
            except ConnectionLost:
                continue
            except InstepError as error:
                self._warn_about(error)

    def listen(self, step: int, timeout_s: float) -> None:
        """Waits for messages, at most `timeout_s` unless another agent must be found, and processes them."""
        self.at_each_look()
        try:
            if not self._connection.connected:
                self._connection.wait_connected(timeout_s)
                self.introduce()
            self._connection.wait_readable(timeout_s)
            self.messages_seen = self._connection.words.messages
            self._exchange(step)
        except ConnectionLost:
            pass  # the next look connects to another agent
        except InstepError as error:
            self._warn_about(error)

    def _warn_about(self, error: InstepError) -> None:
        """Reports an agent that cannot be reached, if it takes longer: most are back in a moment."""
        now = time.monotonic()
        self._apart_since = self._apart_since or now
        if now >= max(self._warn_at, self._apart_since + PATIENCE_S):
            log.warning("%s", error)
            self._warn_at = now + WARN_EVERY_S

    def wait_until(self, until: Callable[[], bool], timeout_s: float, step: int) -> bool:
        """Processes messages until the condition holds; False if it did not in time. Raises the failure, if there is
        one."""
        deadline = time.monotonic() + timeout_s
        heard = False
        while not until():
            if self.failure is not None:
                raise self.failure
            left_s = deadline - time.monotonic()
            if left_s <= 0 and heard:
                return False
            self.listen(step, max(0.0, min(left_s, LISTEN_S)))
            heard = True
        return True

    def ask(
        self,
        query: Callable[[int], wire.Query],
        timeout_s: float,
        step: int,
        unless: Callable[[], bool] = lambda: False,
    ) -> wire.QueryResult | None:
        """Asks a query, which gets a number. Returns the answer, or None if none arrived in time. Raises the
        failure."""
        number, message = self.inbox.ask(query)
        self.send(message)
        try:
            self.wait_until(lambda: unless() or self.inbox.is_answered(number), timeout_s, step)
        finally:
            answer = self.inbox.take_answer(number)
        return answer

    def leave(self, step: int, *, clean: bool, error: BaseException | None, timeout_s: float) -> None:
        """Leaves the run, and waits for the agent's confirmation: otherwise every later change would wait for this
        rank.

        An agent that dies now loses what it has not read; the worker sends it to the next agent.
        """
        leave = wire.Leave(clean, step, *in_words(error))
        if self.state != "training":
            with contextlib.suppress(ConnectionLost):
                self._connection.send(leave)
            return
        deadline = time.monotonic() + timeout_s
        answered, lost = False, True
        while lost and not answered and (left_s := deadline - time.monotonic()) > 0:
            try:
                if not self._connection.connected:
                    self._connection.wait_connected(left_s)
                    self.introduce()
                self._connection.send(leave)
                answered, lost = self._connection.wait_message(wire.Bye, left_s), False
            except ConnectionLost:
                pass  # the agent died before it answered: tell the next one
            except InstepError as error:
                log.warning("%s", error)
                lost = False
        if not answered:
            log.warning("rank %d left, and no agent has confirmed it", self.rank)

    def close(self) -> None:
        self._connection.close()

    def replace_stopped_agent(self) -> None:
        if self._connection.connected and self._liveness.is_stopped(self._connection.words.beat, time.monotonic()):
            log.warning("the agent of rank %d is stopped or stuck: replacing it", self.rank)
            self._connection.kill_agent()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def process(self, messages: Iterable[wire.FromAgent], step: int) -> None:
        """`step` is the one about to be run. Raises ConnectionLost if an answer cannot be sent."""
        for message in messages:
            match message:
                case wire.EnterView():
                    self._enter_view(message)
                    self._connection.reset_restart_delay()
                case wire.ProposePlan():
                    for answer in self._agreement.on_plan(message, step):
                        self._connection.send(answer)
                case wire.Decide():
                    self.send(*self._agreement.on_decision(message, step))
                case wire.NewEpoch(number):
                    self._agreement.epoch = max(self._agreement.epoch, number)
                case wire.AskDryRun():
                    with contextlib.suppress(ConnectionLost):  # the next agent asks again
                        self._connection.send(self._agreement.refusals(message))
                case wire.Leads(token, candidate):
                    self.token, self.candidate = token, candidate
                case wire.Failure():
                    self._on_failure(failure_from(message, self.rank))
                case wire.LostRanks(ranks):
                    if not self.lost_ranks:
                        self.lost_since = time.monotonic()
                    self.lost_ranks = ranks
                case wire.Note(level, text):
                    log.log(level, "%s", text)
                case _:
                    self.inbox.receive(message)

    def _enter_view(self, message: wire.EnterView) -> None:
        if message.view < self.view:
            log.error(
                "view %d is refused: rank %d has been in view %d, which etcd has lost",
                message.view,
                self.rank,
                self.view,
            )
            return
        first, self.view = self.view == 0, message.view
        self._connection.node = message.node
        if first:
            self._agreement.start(message.start, self.view, message.agreed)

    def _on_failure(self, failure: InstepError) -> None:
        """The failure of an agent ends a join, but not a training."""
        if self.view and not isinstance(failure, Evicted | JoinRefused):
            log.warning("rank %d: %s; training continues, changes wait", self.rank, failure)
            return
        self.failure = failure


def _gate_timeout(rank: int, number: int, step: int, waited_s: float) -> GateTimeout:
    return GateTimeout(
        f"rank {rank} waited {waited_s:.0f} s before step {step} for the decision on change {number}: "
        "etcd cannot be read; restore it and restart the run; no decision was guessed",
        step=step,
        waited_s=waited_s,
    )
