"""The leader's loop: reads the reports, asks for the next action, and carries it out as one guarded transaction."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeAlias

from instep.agent.leader_cache import LeaderCache
from instep.agent.state import RunState
from instep.command_kinds import describe
from instep.errors import EtcdDenied, EtcdUnavailable, InstepError
from instep.etcd import Client
from instep.protocol.actions import (
    AbortPlan,
    CollectGarbage,
    CommitPlan,
    DeclineCommands,
    FormView,
    LeaderAction,
    OfferCheckpoint,
    OpenPlan,
    ProclaimLeader,
    RaiseEpoch,
    RefuseWorkers,
    RejectJoin,
    RejectValues,
    RewriteConfig,
    SettleEpoch,
)
from instep.protocol.desired import signed_rejection
from instep.protocol.dry_run import DryRun, Refusals
from instep.protocol.keys import Keys
from instep.protocol.leading import next_action
from instep.protocol.margin import Ahead, Margin
from instep.protocol.records import Decision, View
from instep.protocol.situation import Situation, TrainingProgress
from instep.protocol.transactions import for_action
from instep.recipes.fence import Fence
from instep.recipes.retry import SERVICE, Retry
from instep.tasks import first_of
from instep.text import one_line

log = logging.getLogger("instep")

DryRunner: TypeAlias = Callable[[View, DryRun], Awaitable[Refusals]]
"""Asks a worker of the view to validate its values. Empty if it accepts all, or if there is none to ask."""

CATCH_UP_S = 0.5
DECLINED_LOGGED = 3
TICK_S = 1.0
"""How often the leader decides when nothing has happened: only timeouts depend on it."""
FIRST_LOOK_S = 0.05
"""The same when a term begins, then doubled each time: no event says when the pace of the ranks is known."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Progress of this node's workers: the one ahead has been running `step` for `since_s` seconds."""

    step: int | None
    step_time_s: float
    since_s: float = 0.0

    @property
    def done(self) -> float:
        """Completed steps, plus the completed part of the current one."""
        part = self.since_s / self.step_time_s if self.step_time_s > 0 else 0.0
        return (self.step or 0) + min(1.0, part)


@dataclass(frozen=True, slots=True)
class PendingPlan:
    """A plan that this leader opened. Ranks are expected to answer it at the boundary `arming`."""

    number: int
    gate: int
    arming: int


class Leadership:
    """One term of a leader. `run` ends when cancelled; a transaction that etcd refuses is not repeated.

    Limit: a leader that was replaced may still decide; etcd refuses what it writes.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        fence: Fence,
        state: RunState,
        *,
        pace: Callable[[], Pace],
        dry_runner: DryRunner | None = None,
        ttl_s: float,
        on_denied: Callable[[EtcdDenied], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._keys = keys
        self._fence = fence
        self._state = state
        self._pace = pace
        self._dry_runner = dry_runner
        self._on_denied = on_denied
        self._clock = clock
        self._wake = asyncio.Event()
        self._retry = Retry(SERVICE, "leading waits for etcd")
        self._margin = Margin()
        self._ahead = Ahead(1, 2)
        self._pending: PendingPlan | None = None
        self._cache = LeaderCache(client, keys, state, self.wake, grace_s=ttl_s + 2.0, clock=clock)

    def __repr__(self) -> str:
        return f"Leadership(token={self._fence.token}, {self._state!r})"

    def wake(self) -> None:
        """Something that the decision reads has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Raises what ends an informer: a leader that does not see everything must not lead."""
        await first_of(self._lead(), *self._cache.follow())

    async def _lead(self) -> None:
        await self._cache.wait_listed()
        pause_s = FIRST_LOOK_S
        while True:
            self._wake.clear()
            try:
                while (action := next_action(self._situation())) is not None:
                    done = await self._do(action)
                    self._retry.succeeded()
                    if not done:
                        break
            except InstepError as error:
                if isinstance(error, EtcdDenied):
                    self._on_denied(error)
                await self._retry.failed(error)
                if isinstance(error, EtcdUnavailable):
                    self._wake.set()
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pause_s = min(TICK_S, 2 * pause_s)

    async def _do(self, action: LeaderAction) -> bool:
        """Carries out one action. False if etcd refused it because its state has changed; the informers will show
        how."""
        seen = self._cache.seen()
        if isinstance(action, FormView):
            action = await self._after_dry_run(replace(action, at=_now()))
        if isinstance(action, OpenPlan):
            action = replace(action, plan=replace(action.plan, opened_at=_now()))
        if isinstance(action, RaiseEpoch):
            stamp = {"at": _now(), "after": self._state.informer.revision}
            action = replace(action, epoch=action.epoch.model_copy(update=stamp))
        sent_at = self._clock()
        txn = for_action(action, self._keys, self._fence, seen)
        result = await self._client.txn(txn.compares, txn.then)
        took_s = self._clock() - sent_at
        if not result.succeeded:
            log.info("%s was refused: etcd has changed since it was decided", type(action).__name__)
            return False
        self._learn(action, took_s)
        await self._caught_up(action, result.revision)
        return True

    async def _after_dry_run(self, action: FormView) -> FormView | RejectValues:
        """The action, or the rejection of values that a worker of the view refuses."""
        if action.dry_run is None or self._dry_runner is None:
            return action
        rejections = action.dry_run.rejections(await self._dry_runner(action.view, action.dry_run))
        marks = {change.revision: change for change in action.changes}
        signed = tuple(signed_rejection(item, marks.get(item.revision)) for item in rejections)
        return RejectValues(signed) if signed else action

    def _learn(self, action: LeaderAction, took_s: float) -> None:
        match action:
            case OpenPlan():
                plan = action.plan
                self._margin.opened(took_s)
                if plan.gate != self._state.paused_at:  # answers of paused ranks say nothing about the margin
                    arming = plan.gate - self._ahead.gate + self._ahead.arming
                    self._pending = PendingPlan(plan.number, plan.gate, arming)
                what = plan.values or f"{plan.kind} {plan.name or ''}"
                log.info("plan %d for step %d: %s", plan.number, plan.gate, what)
            case CommitPlan():
                pending, self._pending = self._pending, None
                if pending is not None and pending.number == action.plan.number:
                    pace = self._pace()
                    self._margin.committed((pace.done - pending.arming) * pace.step_time_s)
                log.info("plan %d is committed", action.plan.number)
            case AbortPlan():
                log.info("plan %d is aborted: %s", action.number, action.decision.reason)
            case FormView():
                log.info("view %d formed: %s", action.view.number, _summary(action))
            case RaiseEpoch():
                log.warning("epoch %d begins: %s", action.epoch.number, action.epoch.why)
            case SettleEpoch():
                _log_settled(action)
            case RewriteConfig():
                what = ", ".join(f"{name}={value}" for name, value in action.config.items())
                log.warning("desired values are set to the agreed ones after etcd's history went back: %s", what)
            case ProclaimLeader():
                log.info("rank %d continues to lead, with token %d", action.leader.rank, action.leader.token)
            case RejectValues():
                for item in action.rejections:
                    log.warning("%s=%s is rejected: %s", item.name, item.value, item.reason)
            case DeclineCommands():
                for name, declined in action.declined[:DECLINED_LOGGED]:
                    command = declined.command
                    what = describe(command.kind, command.name) if command else f"command {one_line(name)}"
                    log.warning("%s is declined: %s", what, declined.why)
                if len(action.declined) > DECLINED_LOGGED:
                    log.warning("%d more commands are declined", len(action.declined) - DECLINED_LOGGED)
            case OfferCheckpoint():
                resume, reasons = action.resume, "; ".join(action.resume.reasons.values())
                what = "all ranks resume from" if resume.final else "the ranks verify"
                log.info("%s checkpoint %s%s", what, resume.id, f" ({reasons})" if reasons else "")
            case RefuseWorkers() | RejectJoin():
                for refused in action.refused:
                    log.warning("refused: %s", refused.reason)
            case _:
                pass

    def _learn_abort(self, number: int, decision: Decision, pace: Pace) -> None:
        """Learns once from each plan, however often the situation is read."""
        pending = self._pending
        if pending is not None and pending.number == number:
            self._pending = None
            if decision.step is not None:
                self._margin.aborted((pending.gate - pending.arming) * pace.step_time_s)

    async def _caught_up(self, action: LeaderAction, revision: int) -> None:
        """Waits until the write shows in the informer: otherwise the next decision repeats this one."""
        only_changes = isinstance(action, CollectGarbage) and not (
            action.rejections or action.declined or action.refusals
        )
        informer = self._cache.desires if only_changes else self._state.informer
        await informer.wait_revision(revision, CATCH_UP_S)

    def _situation(self) -> Situation:
        pace, plan, decision = self._pace(), self._state.plan, self._state.decision
        if plan is not None and decision is not None and not decision.commit:
            self._learn_abort(plan.number, decision, pace)
        self._ahead = self._margin.ahead(pace.step_time_s, pace.since_s)
        return self._cache.situation(TrainingProgress(pace.step, pace.step_time_s, self._ahead.gate))


def _summary(action: FormView) -> str:
    kind = "a fresh start" if action.view.fresh else "training continues"
    return f"{action.view.world_size} ranks on {len(action.view.nodes)} nodes, {kind}"


def _log_settled(action: SettleEpoch) -> None:
    epoch = action.epoch
    if epoch.problem is not None:
        log.error(
            "changes stop, training continues: %s. Restart all ranks: they resume from the newest checkpoint",
            epoch.problem,
        )
    elif action.agreed is not None:
        log.warning(
            "etcd had lost decision %d (%s): it is written back, values %s",
            action.agreed.plan,
            action.agreed.digest,
            action.agreed.values,
        )
    else:
        log.info("epoch %d is settled: etcd holds what the ranks hold", epoch.number)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
