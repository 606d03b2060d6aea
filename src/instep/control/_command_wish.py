"""A command as something to be followed: to the step that all ranks did it at, and to the checkpoint it asked for.
Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from instep.control._checkpoints import Checkpoint, checkpoint_of
from instep.control._command import Sent
from instep.control._facts import Facts
from instep.control._orders import what_of
from instep.control._picture import Picture, Saved
from instep.control._stand import Outcome, Stand, all_applied
from instep.control._text import format_bytes
from instep.errors import CommandRefused
from instep.protocol.keys import Keys
from instep.protocol.records import CommandKind, Plan
from instep.text import one_line

_SAVED_NOTHING = "saved nothing: does the loop call ckpt.save(step) when run.checkpoint_requested is set?"


@dataclass(frozen=True, slots=True)
class CommandReceipt(Facts):
    """What became of a command. `outcome` is one of `Outcome`, declined excepted: that is raised.

    `step` is the one before which all ranks did it: of a checkpoint the step that was to be saved, of a stop the first
    that is not run. `checkpoint` is the one that it asked for. `took_s` is from before the write until the last answer
    was seen here.
    """

    outcome: Outcome
    kind: CommandKind
    name: str | None
    plan: int | None
    attempts: int
    step: int | None
    armed: int
    applied: int
    ranks: int
    checkpoint: Checkpoint | None
    took_s: float
    sentence: str

    @property
    def holds(self) -> bool:
        """True when every rank has done it, and a checkpoint that it asked for is committed."""
        return self.outcome == "applied"


@dataclass(frozen=True, slots=True)
class CommandWish:
    """Done by all ranks at the gate of a plan, whose commit deletes it."""

    sent: Sent

    @property
    def what(self) -> str:
        return self.sent.what

    @property
    def asked_at_s(self) -> float:
        return self.sent.asked_at_s

    @property
    def refused_outcome(self) -> Outcome:
        return "declined"

    def is_for(self, plan: Plan) -> bool:
        return plan.revision == self.sent.revision and plan.change_id == self.sent.command_id

    def watched(self, keys: Keys) -> tuple[str, ...]:
        return (keys.commands, keys.checkpoints, keys.failed_saves) if self.sent.saves else (keys.commands,)

    def refusal(self, picture: Picture) -> str | None:
        record = picture.declined.get(self.sent.command_id)
        return record.why if record is not None else None

    def is_lost(self, picture: Picture) -> bool:
        is_there = self.sent.command_id in picture.orders
        return not is_there and picture.went_back(self.sent.epoch, self.sent.revision)

    def without_plan(self, picture: Picture) -> Outcome | None:
        """Only a start of the run, or somebody's hand, deletes a command that was neither agreed on nor declined."""
        if self.sent.command_id not in picture.orders:
            return "superseded"
        return "ended" if picture.ended() else None

    def committed(self, picture: Picture, plan: Plan, stand: Stand) -> Stand:
        view, kind = picture.view, self.sent.kind
        if view is not None and view.fresh and view.number > plan.view:
            if kind == "pause" and picture.course.paused_at is not None:
                return all_applied(picture, plan, stand.attempt)
            return Stand("done", "superseded", plan.number, plan.gate, stand.attempt)
        if kind == "stop" and stand.outcome == "ended":
            ranks = len(picture.ranks())
            stand = Stand("done", "applied", plan.number, plan.gate, stand.attempt, ranks, ranks, ranks)
        if not self.sent.saves or stand.outcome != "applied" or self._saved(picture, plan) is not None:
            return stand
        step = _step_to_save(plan)
        saving = picture.save_under_way()
        writes = saving is not None and saving.step == step
        detail = (
            f"rank {saving.rank} writes the checkpoint of step {step}"
            if saving is not None and writes
            else f"no checkpoint of step {step} is committed yet"
        )
        return replace(stand, stage="saving", outcome=None, detail=detail)

    def is_hopeless(self, picture: Picture, stand: Stand) -> bool:
        plan = picture.plans.get(stand.plan or 0)
        if stand.stage != "saving" or plan is None:
            return False
        step, saving = _step_to_save(plan), picture.save_under_way()
        if picture.failed_save(step, self.sent.revision) is not None:
            return True
        if saving is not None and saving.step == step:
            return False
        here = picture.ranks() - picture.ranks_left()
        steps = [item.step or 0 for rank, item in picture.metrics.items() if rank in here]
        return picture.ended() or (bool(steps) and min(steps) > step)

    def refused(self, stand: Stand) -> CommandRefused:
        return CommandRefused(f"{self.what}: declined by the run: {stand.detail}")

    def unfinished(self, stand: Stand | None) -> str:
        if stand is None or stand.stage in ("written", "planned", "aborted"):
            return "It stays requested."
        return (
            "The checkpoint may still come." if stand.stage == "saving" else "It is agreed on, and done all the same."
        )

    def receipt(self, picture: Picture, stand: Stand, took_s: float) -> CommandReceipt:
        took_s = round(took_s, 3)  # once: the sentence and the figure are to say the same
        plan = picture.plans.get(stand.plan or 0)
        saved = self._saved(picture, plan) if plan is not None else None
        checkpoint = checkpoint_of(saved, picture.latest) if saved is not None else None
        assert stand.outcome is not None
        return CommandReceipt(
            outcome=stand.outcome,
            kind=self.sent.kind,
            name=self.sent.name,
            plan=stand.plan,
            attempts=stand.attempt,
            step=_step(plan) if plan is not None and stand.outcome in ("applied", "unsaved") else None,
            armed=stand.armed,
            applied=stand.applied,
            ranks=stand.ranks,
            checkpoint=checkpoint,
            took_s=took_s,
            sentence=command_sentence(self.sent, plan, checkpoint, stand, took_s, self._why_unsaved(picture, plan)),
        )

    def _why_unsaved(self, picture: Picture, plan: Plan | None) -> str:
        failed = picture.failed_save(_step_to_save(plan), self.sent.revision) if plan is not None else None
        return f"could not save it: {one_line(failed.text)}" if failed is not None else _SAVED_NOTHING

    def _saved(self, picture: Picture, plan: Plan) -> Saved | None:
        """The checkpoint that it asked for: of that step, and committed since."""
        step = _step_to_save(plan)
        found = [item for item in picture.saved.values() if item.manifest.step == step]
        newest = max(found, key=lambda item: item.revision, default=None)
        return newest if newest is not None and newest.revision > self.sent.revision and self.sent.saves else None


def command_sentence(
    sent: Sent,
    plan: Plan | None,
    checkpoint: Checkpoint | None,
    stand: Stand,
    took_s: float,
    unsaved: str = _SAVED_NOTHING,
) -> str:
    """`stop: requested, armed on 8/8 ranks, all ranks stop before step 1201, checkpoint 1200-57 saved by rank 3 (1.2
    GB, 0.8 s), 0.31 s`."""
    if stand.outcome == "stopped":
        far = f"agreed for step {stand.gate}, but not done on all ranks" if stand.applied < stand.ranks else "not done"
        far = "all ranks did it and saved no checkpoint" if stand.applied and stand.applied == stand.ranks else far
        return f"{sent.what}: {far if plan is not None else 'not done'}, no worker of the run is alive"
    if stand.outcome == "lost":
        return f"{sent.what}: not done, etcd's history went back and lost it before it was agreed on: ask for it again"
    if plan is None or stand.outcome not in ("applied", "unsaved"):
        why = "the run ended first" if stand.outcome == "ended" else "the run was started anew first"
        return f"{sent.what}: not done, {why}"
    parts = [f"{sent.what}: requested", f"armed on {stand.armed}/{stand.ranks} ranks", _done(sent, plan, stand)]
    if checkpoint is not None:
        size = f"{format_bytes(checkpoint.bytes)}, {checkpoint.duration_s:.2g} s"
        parts.append(f"checkpoint {checkpoint.id} saved by rank {checkpoint.saved_by} ({size})")
    again = f" (attempt {stand.attempt})" if stand.attempt > 1 else ""
    sentence = ", ".join([*parts, f"{took_s:.2f} s"]) + again
    if stand.outcome == "unsaved":
        sentence += f"; but the ranks passed step {_step_to_save(plan)} and {unsaved}"
    return sentence


def _done(sent: Sent, plan: Plan, stand: Stand) -> str:
    on, step = f"on {stand.applied}/{stand.ranks}", _step(plan)
    match sent.kind:
        case "pause":
            return f"paused before step {step} {on}"
        case "resume":
            return f"resumed at step {step} {on}"
        case "stop":
            return f"all ranks stop before step {step}"
        case "checkpoint":
            return f"asked for in step {step} {on}"
        case "restore":
            goes_on = f" and go on with step {plan.checkpoint.step + 1}" if plan.checkpoint is not None else ""
            return f"all ranks went back before step {step}{goes_on} {on}"
        case _:
            return f"{what_of(plan.kind, plan.name).removeprefix('act ')} ran before step {step} {on}"


def _step(plan: Plan) -> int:
    """What people are told of it: of a stop the first step that is not run, else the gate."""
    ends_at = plan.course.ends_at if plan.kind == "stop" and plan.course is not None else None
    return ends_at if ends_at is not None else plan.gate


def _step_to_save(plan: Plan) -> int:
    save_at = plan.course.save_at if plan.course is not None else None
    return save_at if save_at is not None else plan.gate
