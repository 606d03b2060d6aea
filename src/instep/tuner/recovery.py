"""How a run is recovered: which checkpoint, which data is passed over, which values are set back. Pure.

The data skip. The script reads `data[step + offset]`, the offset being an agreed hyperparameter that starts at 0 and
only rises. Suppose that steps `a` to `b` are suspect and ran at offset `k`: their data has the indices `a + k` to
`b + k`. The run goes back to the checkpoint of step `c`, with `c <= a - 20`, and continues with step `c + 1`. One
plan sets the offset and the checkpoint at one gate, so the first index that any rank reads afterwards is
`c + 1 + k'`. The recovery chooses

    k' = k + (b - c) + margin,      which gives      c + 1 + k' = (b + k) + 1 + margin:

the run continues behind the newest suspect batch and `margin` more. The costs, and the reasons:

- The block that is passed over begins at index `c + 1 + k`. It contains `a - c - 1` batches that were read before the
  suspect ones and that are probably good: in a first recovery at most one checkpoint interval and 20 batches. To read
  them again and to skip only `[a + k, b + k + margin]`, a second plan would have to raise the offset at the exact step
  `a`. If that plan came late, the ranks would read the suspect data. One scalar in one plan cannot come late. In 40 of
  40 measured runs, going back at least 20 steps and passing over 100 batches ended within 0.025 nats of the twin.
- Nobody knows where a bad shard ends. The margin has to cover the rest of it: its default is 100 batches. Between the
  decision in step `b` and the gate, the ill run reads more data. What of it lies behind the margin is read again, from
  healthy weights.
- The new values hold from step `c + 1` on. The gate is a later step, so the agreed record must not give a rank that
  joins between the two the values of before the gate.
- Every rank reads `run.config` after the same boundary, so all ranks pass over the same batches. A loader that has
  fetched ahead must restart at `step + offset` after the restore.
- A second recovery raises the offset again. If it goes back to an older checkpoint than the first one, the position
  `c + 1 + k'` could lie before data that was skipped then. `State.skipped_to` remembers the end of all skipped data,
  and no recovery continues before it.
- A crash and a restart lose nothing. The offset is an agreed value: the fresh view starts with it, and the checkpoint
  pointer was moved to `c` by the same plan. Each later checkpoint records the agreed values, the offset included. A
  restart takes the larger one of the recorded offset and the agreed one. The journal records `skipped_to`, so a
  successor of the tuner knows it too.
- Limit: a restart from a checkpoint older than `c` moves the position back by the difference. `instep recover`
  therefore computes its default skip with the same function (`skip_to`).
- Limit: a finite data set loses `k'` batches at its end. The script decides what follows the last index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from instep.scalar import Scalar, same
from instep.tuner.robust import usable
from instep.tuner.sample import Checkpoint, Parameter, Sample
from instep.tuner.state import Change, LedgerEntry, State

Changes = Mapping[str, tuple[Scalar, Scalar]]


@dataclass(frozen=True, slots=True)
class Cause:
    """Recent changes of values that may be the cause, and what takes them back."""

    changes: Changes
    """By name, the agreed value and the one before the changes."""
    plans: tuple[int, ...]
    step: int
    """The gate of the first one."""


@dataclass(frozen=True, slots=True)
class Skip:
    """The data that a recovery passes over."""

    offset: str
    """The hyperparameter."""
    by: int
    """By how much it rises."""
    to: int
    """The first data index that is read."""


def skip_to(newest_step: int, offset: int, margin: int, skipped_to: int = 0) -> int:
    """The first data index to read after a recovery, see above. `skipped_to` is the end of what was skipped before."""
    return max(newest_step + offset + 1 + margin, skipped_to)


def skip_of(state: State, sample: Sample, checkpoint: Checkpoint) -> Skip | None:
    """What going back to `checkpoint` passes over; None if the script declares no data offset that can rise."""
    name = sample.data_offset
    if name is None:
        return None
    parameter = sample.parameters[name]
    now = parameter.value
    if not isinstance(now, int) or isinstance(now, bool) or now < 0 or parameter.fixed:
        return None
    to = skip_to(state.step, now, state.rules.brakes.skip_margin, state.skipped_to)
    return Skip(name, to - (checkpoint.step + 1) - now, to)


def cause_of(state: State, sample: Sample, suspect: int, since: int) -> Cause | None:
    """The changes made up to `change_within_steps` before the first suspect step, as far as they still hold.

    A learning rate that was lowered is not taken back: nothing here raises one. Nor is the data offset.
    """
    brakes = state.rules.brakes
    near = [change for change in state.changes if suspect - brakes.change_within_steps <= change.step <= since]
    back: dict[str, tuple[Scalar, Scalar]] = {}
    blamed: list[Change] = []
    for name, parameter in sample.parameters.items():
        touching = [change for change in near if name in change.changes]
        if not touching or parameter.fixed or parameter.data_offset:
            continue
        old, newest = touching[0].changes[name][0], touching[-1].changes[name][1]
        if not same(newest, parameter.value) or same(old, parameter.value):
            continue
        if name in brakes.lr and not is_lower(old, parameter.value):
            continue
        back[name] = (parameter.value, old)
        blamed += [change for change in touching if change not in blamed]
    if not back:
        return None
    plans = tuple(sorted({change.plan for change in blamed if change.plan is not None}))
    return Cause(back, plans, min(change.step for change in blamed))


def checkpoint_for(state: State, sample: Sample, suspect: int, related: Iterable[LedgerEntry]) -> Checkpoint | None:
    """The newest checkpoint far enough before the first suspect step that the incident has not used yet.

    After a first recovery only older ones count: what followed that checkpoint is suspect as well.
    """
    used = [entry for entry in related if entry.checkpoint is not None]
    older_than = min((entry.checkpoint_step for entry in used if entry.checkpoint_step is not None), default=None)
    names = {entry.checkpoint for entry in used}
    usable = (
        item
        for item in usable_checkpoints(state, sample, suspect)
        if item.id not in names and (older_than is None or item.step < older_than)
    )
    return next(usable, None)


def usable_checkpoints(state: State, sample: Sample, suspect: int) -> list[Checkpoint]:
    """The checkpoints that a recovery may use, the newest first."""
    latest = suspect - state.rules.brakes.rewind_steps
    usable = [
        item
        for item in sample.checkpoints
        if item.step <= latest and item.id not in state.abandoned and item.finite is not False
    ]
    return sorted(usable, key=lambda item: item.step, reverse=True)


def lower_lr(state: State, sample: Sample, back: Changes) -> Changes:
    """The learning rates multiplied by `lr_factor`, after what is set back; without those that are at their floor."""
    brakes = state.rules.brakes
    lowered: dict[str, tuple[Scalar, Scalar]] = {}
    for name in brakes.lr:
        parameter = sample.parameters.get(name)
        if parameter is None or parameter.fixed:
            continue
        now = parameter.value
        base = back[name][1] if name in back else now
        number = positive(base)
        if number is None:
            continue
        value = max(number * brakes.lr_factor, brakes.lr_floor * _set_by_person(state, name, number))
        if value < number and is_lower(value, now):
            lowered[name] = (now, value)
    return lowered


def out_of_bounds(state: State, parameters: Mapping[str, Parameter], name: str, value: Scalar) -> float | None:
    """The bound that forbids to set `name` to `value`; None if it is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    parameter, bound = parameters[name], state.rules.bounds.get(name)
    lowest = [item for item in (parameter.minimum, bound.min if bound else None) if item is not None]
    highest = [item for item in (parameter.maximum, bound.max if bound else None) if item is not None]
    if lowest and value < max(lowest):
        return max(lowest)
    if highest and value > min(highest):
        return min(highest)
    return None


def positive(value: Scalar) -> float | None:
    """The value as a number above zero; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return None
    return usable(value)


def is_lower(value: Scalar, than: Scalar) -> bool:
    if isinstance(value, bool) or isinstance(than, bool):
        return False
    return isinstance(value, int | float) and isinstance(than, int | float) and value < than


def _set_by_person(state: State, name: str, now: float) -> float:
    """What the learning rate was before the tuner has lowered it."""
    value = now
    for entry in reversed(state.ledger):
        if entry.outcome != "done" or name not in entry.changes or entry.kind not in ("cut_lr", "recover"):
            continue
        old, new = entry.changes[name]
        before = positive(old)
        if before is None or positive(new) != value or before <= value:
            break  # a person has set it since
        value = before
    return value
