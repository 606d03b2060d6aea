"""A written change and a sent command, as requests that `follow` follows to their receipts. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from instep.command_kinds import COMMAND_KINDS
from instep.control._cache import RunCache, Saved
from instep.control._change import Written
from instep.control._checkpoints import CheckpointReport, checkpoint_of
from instep.control._commands import Sent
from instep.control._progress import Outcome, Progress, all_applied, drift_of_receipts, drift_sentence
from instep.control._report import JsonReport, ValueChange, all_same, format_bytes, format_changes, planned_changes
from instep.errors import ChangeRejected, CommandRefused
from instep.protocol.keys import Keys
from instep.protocol.records import Plan
from instep.scalar import Scalar, parse_scalar, same
from instep.text import one_line

_SAVED_NOTHING = "saved nothing: does the loop call ckpt.save(step) when run.checkpoint_requested is set?"


@dataclass(frozen=True, slots=True)
class ChangeReceipt(JsonReport):
    """The result of a change. `outcome` is one of `Outcome`; for rejected, `follow` raises an error instead.

    `step` is the first step run with the new values, the same on all ranks; None if no plan was needed. `took_s` is the
    time from before the write until the last answer was seen here.
    """

    outcome: Outcome
    changes: tuple[ValueChange, ...]
    plan: int | None
    attempts: int
    step: int | None
    armed: int
    applied: int
    ranks: int
    view: int | None
    took_s: float
    sentence: str
    drift: dict[str, str] = field(default_factory=dict)
    """By hyperparameter, the ranks whose optimizer does not hold it although they have applied it."""

    @property
    def holds(self) -> bool:
        """True when the values hold on every rank. `drift` names optimizers that something else writes to."""
        return self.outcome in ("applied", "started", "already")


@dataclass(frozen=True, slots=True)
class CommandReceipt(JsonReport):
    """The result of a command. `outcome` is one of `Outcome`; for declined, `follow` raises an error instead.

    `step` is the one before which all ranks carried it out: for a checkpoint the step that was to be saved, for a stop
    the first that is not run. `checkpoint` is the one that it requested. `took_s` is the time from before the write
    until the last answer was seen here.
    """

    outcome: Outcome
    kind: str
    name: str | None
    plan: int | None
    attempts: int
    step: int | None
    armed: int
    applied: int
    ranks: int
    checkpoint: CheckpointReport | None
    took_s: float
    sentence: str

    @property
    def holds(self) -> bool:
        """True when every rank has carried it out, and the checkpoint that it requested, if any, is committed."""
        return self.outcome == "applied"


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """All its values have one revision, and so have the plans made for it."""

    asked: Written
    refused_outcome: ClassVar[Outcome] = "rejected"

    def is_for(self, plan: Plan) -> bool:
        """After etcd's history has gone back, another change may have the same revision."""
        is_ours = plan.change_id in (None, self.asked.change_id)
        return plan.revision == self.asked.revision and plan.kind == "config" and is_ours

    def watched(self, keys: Keys) -> tuple[str, ...]:
        return (keys.config,)

    def refusal(self, cache: RunCache) -> str | None:
        found = {
            name: record.reason
            for name in self.asked.values
            if (record := cache.rejected.get(name)) is not None and record.revision == self.asked.revision
        }
        return "; ".join(f"{name}: {reason}" for name, reason in found.items()) or None

    def is_lost(self, cache: RunCache) -> bool:
        if all_same(self.asked.values, cache.agreed.values if cache.agreed is not None else {}):
            return False
        return not self._still_desired(cache) and cache.went_back(self.asked.epoch, self.asked.revision)

    def _still_desired(self, cache: RunCache) -> bool:
        """Whether any of its values is still desired as it was written."""
        return any(
            (item := cache.desired.get(name)) is not None
            and item.revision == self.asked.revision
            and _means(item.text, value)
            for name, value in self.asked.values.items()
        )

    def without_plan(self, cache: RunCache) -> Outcome | None:
        agreed, view = cache.agreed, cache.view
        wanted, revision = self.asked.values, self.asked.revision
        if agreed is not None and all_same(wanted, agreed.values):
            started = view is not None and view.fresh and agreed.plan == view.start.plan
            if started and agreed.revision >= revision and not self.asked.already_agreed:
                return "started"
            plan = cache.open_plan()
            if plan is None or not wanted.keys() & plan.values.keys():
                return "already"
        if not self._still_desired(cache):
            return "superseded"
        return "ended" if cache.ended() else None

    def committed(self, cache: RunCache, plan: Plan, progress: Progress) -> Progress:
        """When a later view has started with these values everywhere, no rank is still before the gate."""
        view = cache.view
        overtaken = view is not None and view.number > plan.view and view.start.previous is None
        return all_applied(cache, plan, progress.attempt) if overtaken else progress

    def cannot_finish(self, cache: RunCache, progress: Progress) -> bool:
        return False

    def refused(self, progress: Progress) -> ChangeRejected:
        return ChangeRejected(
            f"{self.asked.what}: rejected by the run, the agreed values are unchanged: {progress.detail}",
            problems=dict.fromkeys(self.asked.values, progress.detail or ""),
        )

    def unfinished(self, progress: Progress | None) -> str:
        return "It stays desired."

    def receipt(self, cache: RunCache, progress: Progress, took_s: float) -> ChangeReceipt:
        took_s = round(took_s, 3)  # once, so the sentence and the figure agree
        changes = self._changes(cache, progress)
        assert progress.outcome is not None
        drift = drift_of_receipts(cache, progress.plan) if progress.outcome == "applied" else {}
        sentence = change_sentence(changes, progress, took_s)
        return ChangeReceipt(
            outcome=progress.outcome,
            changes=changes,
            plan=progress.plan,
            attempts=progress.attempt,
            step=progress.steps[0] if progress.steps else None,
            armed=progress.armed,
            applied=progress.applied,
            ranks=progress.ranks,
            view=progress.view,
            took_s=took_s,
            sentence=f"{sentence}; but {drift_sentence(drift)}" if drift else sentence,
            drift=drift,
        )

    def _changes(self, cache: RunCache, progress: Progress) -> tuple[ValueChange, ...]:
        """The written changes, with `before` from the plan: another change may have been applied in between."""
        plan = cache.plans.get(progress.plan) if progress.plan is not None else None
        if plan is None or progress.outcome != "applied":
            return self.asked.changes
        planned = {change.name: change for change in planned_changes(plan.values, plan.previous)}
        return tuple(
            ValueChange(change.name, known.before, change.after, known.was_set)
            if (known := planned.get(change.name)) is not None
            else change
            for change in self.asked.changes
        )


def change_sentence(changes: tuple[ValueChange, ...], progress: Progress, took_s: float) -> str:
    """`lr 3e-4 → 1e-4: requested, armed on 8/8 ranks, applied at step 12341 on 8/8, 0.21 s`."""
    what, on = format_changes(changes), f"{progress.applied}/{progress.ranks}"
    match progress.outcome:
        case "applied":
            at = " and ".join(map(str, progress.steps[:4]))
            armed = f"armed on {progress.armed}/{progress.ranks} ranks"
            return f"{what}: requested, {armed}, applied at step {at} on {on}, {took_s:.2f} s{_again(progress)}"
        case "started":
            return f"{what}: requested, view {progress.view} started with it on {on} ranks, {took_s:.2f} s"
        case "already":
            return f"{what}: every rank has it already, nothing to apply"
        case "superseded":
            return f"{what}: not applied, a later change of the same hyperparameters took its place"
        case "lost":
            return f"{what}: not applied, etcd's history went back and lost it before it was agreed on: set it again"
    why = "no worker of the run is alive" if progress.outcome == "stopped" else "the run ended first"
    return f"{what}: not applied, {why}; its next start uses it"


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """All ranks carry it out at the gate of a plan, whose commit deletes it."""

    asked: Sent
    refused_outcome: ClassVar[Outcome] = "declined"

    def is_for(self, plan: Plan) -> bool:
        return plan.revision == self.asked.revision and plan.change_id == self.asked.command_id

    def watched(self, keys: Keys) -> tuple[str, ...]:
        return (keys.commands, keys.checkpoints, keys.failed_saves) if self.asked.saves else (keys.commands,)

    def refusal(self, cache: RunCache) -> str | None:
        record = cache.declined.get(self.asked.command_id)
        return record.why if record is not None else None

    def is_lost(self, cache: RunCache) -> bool:
        is_there = self.asked.command_id in cache.commands
        return not is_there and cache.went_back(self.asked.epoch, self.asked.revision)

    def without_plan(self, cache: RunCache) -> Outcome | None:
        """Only a restart of the run, or a person, deletes a command that was neither agreed on nor declined."""
        if self.asked.command_id not in cache.commands:
            return "superseded"
        return "ended" if cache.ended() else None

    def committed(self, cache: RunCache, plan: Plan, progress: Progress) -> Progress:
        view = cache.view
        if view is not None and view.fresh and view.number > plan.view:
            if COMMAND_KINDS[plan.kind].survives_restart and cache.directive.paused_at is not None:
                return all_applied(cache, plan, progress.attempt)
            return Progress("done", "superseded", plan.number, plan.gate, progress.attempt)
        if _ends_at(plan) is not None and progress.outcome == "ended":
            ranks = len(cache.ranks())
            progress = replace(progress, outcome="applied", armed=ranks, applied=ranks, ranks=ranks)
        if not self.asked.saves or progress.outcome != "applied" or self._saved(cache, plan) is not None:
            return progress
        step = _step_to_save(plan)
        saving = cache.save_under_way()
        detail = (
            f"rank {saving.rank} writes the checkpoint of step {step}"
            if saving is not None and saving.step == step
            else f"no checkpoint of step {step} is committed yet"
        )
        return replace(progress, stage="saving", outcome=None, detail=detail)

    def cannot_finish(self, cache: RunCache, progress: Progress) -> bool:
        plan = cache.plans.get(progress.plan or 0)
        if progress.stage != "saving" or plan is None:
            return False
        step, saving = _step_to_save(plan), cache.save_under_way()
        if cache.failed_save(step, self.asked.revision) is not None:
            return True
        if saving is not None and saving.step == step:
            return False
        here = cache.ranks_active()
        steps = [item.step or 0 for rank, item in cache.metrics.items() if rank in here]
        return cache.ended() or (bool(steps) and min(steps) > step)

    def refused(self, progress: Progress) -> CommandRefused:
        return CommandRefused(f"{self.asked.what}: declined by the run: {progress.detail}")

    def unfinished(self, progress: Progress | None) -> str:
        if progress is None or progress.stage in ("written", "planned", "aborted"):
            return "It stays requested."
        if progress.stage == "saving":
            return "The checkpoint may still be committed."
        return "It is agreed on, and the ranks carry it out all the same."

    def receipt(self, cache: RunCache, progress: Progress, took_s: float) -> CommandReceipt:
        took_s = round(took_s, 3)  # once, so the sentence and the figure agree
        plan = cache.plans.get(progress.plan or 0)
        saved = self._saved(cache, plan) if plan is not None else None
        checkpoint = checkpoint_of(saved, cache.latest) if saved is not None else None
        assert progress.outcome is not None
        return CommandReceipt(
            outcome=progress.outcome,
            kind=self.asked.kind,
            name=self.asked.name,
            plan=progress.plan,
            attempts=progress.attempt,
            step=_step(plan) if plan is not None and progress.outcome in ("applied", "unsaved") else None,
            armed=progress.armed,
            applied=progress.applied,
            ranks=progress.ranks,
            checkpoint=checkpoint,
            took_s=took_s,
            sentence=command_sentence(self.asked, plan, checkpoint, progress, took_s, self._why_unsaved(cache, plan)),
        )

    def _why_unsaved(self, cache: RunCache, plan: Plan | None) -> str:
        failed = cache.failed_save(_step_to_save(plan), self.asked.revision) if plan is not None else None
        return f"could not save it: {one_line(failed.text)}" if failed is not None else _SAVED_NOTHING

    def _saved(self, cache: RunCache, plan: Plan) -> Saved | None:
        """The checkpoint that it requested: of that step, and committed since."""
        step = _step_to_save(plan)
        found = [item for item in cache.saved.values() if item.manifest.step == step]
        newest = max(found, key=lambda item: item.revision, default=None)
        return newest if newest is not None and newest.revision > self.asked.revision and self.asked.saves else None


def command_sentence(
    sent: Sent, plan: Plan | None, checkpoint: CheckpointReport | None, progress: Progress, took_s: float, unsaved: str
) -> str:
    """`stop: requested, armed on 8/8 ranks, all ranks stop before step 1201, checkpoint 1200-57 saved by rank 3 (1.2
    GB, 0.8 s), 0.31 s`."""
    on = f"{progress.applied}/{progress.ranks}"
    if progress.outcome == "stopped":
        far = "not done"
        if plan is not None and progress.applied < progress.ranks:
            far = f"agreed for step {progress.gate}, but not done on all ranks"
        elif plan is not None and progress.applied:
            far = "all ranks did it and saved no checkpoint"
        return f"{sent.what}: {far}, no worker of the run is alive"
    if progress.outcome == "lost":
        return f"{sent.what}: not done, etcd's history went back and lost it before it was agreed on: request it again"
    if plan is None or progress.outcome not in ("applied", "unsaved"):
        why = "the run ended first" if progress.outcome == "ended" else "the run was restarted first"
        return f"{sent.what}: not done, {why}"
    resumes = plan.checkpoint.step + 1 if plan.checkpoint is not None else plan.gate
    done = COMMAND_KINDS[plan.kind].done.format(
        step=_step(plan), on=on, name=one_line(plan.name or ""), resumes=resumes
    )
    parts = [f"{sent.what}: requested", f"armed on {progress.armed}/{progress.ranks} ranks", done]
    if checkpoint is not None:
        size = f"{format_bytes(checkpoint.bytes)}, {checkpoint.duration_s:.2g} s"
        parts.append(f"checkpoint {checkpoint.id} saved by rank {checkpoint.saved_by} ({size})")
    sentence = ", ".join([*parts, f"{took_s:.2f} s"]) + _again(progress)
    if progress.outcome == "unsaved":
        sentence += f"; but the ranks passed step {_step_to_save(plan)} and {unsaved}"
    return sentence


def _again(progress: Progress) -> str:
    return f" (attempt {progress.attempt})" if progress.attempt > 1 else ""


def _ends_at(plan: Plan) -> int | None:
    return plan.directive.ends_at if plan.directive is not None else None


def _step(plan: Plan) -> int:
    """The step that a receipt names: for a command that ends the run the first that is not run, else the gate."""
    ends_at = _ends_at(plan)
    return ends_at if ends_at is not None else plan.gate


def _step_to_save(plan: Plan) -> int:
    save_at = plan.directive.save_at if plan.directive is not None else None
    return save_at if save_at is not None else plan.gate


def _means(text: str, value: Scalar) -> bool:
    """Whether the text in etcd is that value in any notation: others write 3e-4 for 0.0003."""
    try:
        return same(parse_scalar(text), value)
    except ValueError:
        return False
