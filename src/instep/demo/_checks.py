"""The demo's claims, checked against what the ranks recorded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from instep.control import ChangeReceipt, JsonReport, format_changes
from instep.demo._records import BaselineRecord, RankRecord
from instep.rendezvous.records import Round
from instep.text import counted


@dataclass(frozen=True, slots=True)
class Steered(JsonReport):
    """One change by the operator: the tool that made it, and its receipt."""

    by: str
    receipt: ChangeReceipt


@dataclass(frozen=True, slots=True)
class RefusedValue(JsonReport):
    """An invalid value: the reason given, and what etcd held before and after."""

    asked: str
    reason: str
    before: str
    after: str
    written: bool


@dataclass(frozen=True, slots=True)
class Takeover(JsonReport):
    """The rank that wrote the checkpoint of `step` was killed; `by_rank` became leader `took_ms` later."""

    step: int
    killed_rank: int
    by_rank: int
    took_ms: float
    saved_by: int
    """The rank that committed the checkpoint of that step."""


@dataclass(frozen=True, slots=True)
class Pause(JsonReport):
    """The run was paused before `step` for `stood_s` seconds."""

    step: int
    stood_s: float


@dataclass(frozen=True, slots=True)
class Stop(JsonReport):
    """One rank got SIGTERM. `checkpoint` is the newest committed step after it, `code` torchrun's exit code."""

    rank: int
    checkpoint: int
    code: int
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one demo left behind. `baseline` are the ranks that trained without Instep, told to use `baseline_lr`."""

    ranks: int
    steered: tuple[Steered, ...]
    refusal: RefusedValue
    takeover: Takeover
    round: Round | None
    """torchrun's round after the restart, read from etcd."""
    pause: Pause
    stop: Stop
    baseline_lr: float
    records: tuple[RankRecord, ...] = ()
    baseline: tuple[BaselineRecord, ...] = ()

    @property
    def first(self) -> tuple[RankRecord, ...]:
        """The ranks before one of them was killed."""
        return tuple(record for record in self.records if record.view == self.records[0].view)

    @property
    def last(self) -> tuple[RankRecord, ...]:
        """The ranks that resumed from the checkpoint and ran until the stop."""
        return tuple(record for record in self.records if record.view == self.records[-1].view)

    @property
    def last_step(self) -> int:
        return max((record.last_step for record in self.last), default=-1)


@dataclass(frozen=True, slots=True)
class Check(JsonReport):
    claim: str
    how: str
    found: str
    held: bool


def check(evidence: Evidence) -> tuple[Check, ...]:
    """Checks every claim of the demo."""
    return (
        _same_parameters(evidence),
        _same_values(evidence),
        *(_one_step(evidence, steered) for steered in evidence.steered),
        _refused(evidence.refusal),
        _saved_by_another(evidence),
        _met_again(evidence),
        _resumed(evidence),
        _paused(evidence),
        _stopped(evidence),
        _footprint(evidence),
        _drifted(evidence),
    )


def _same_parameters(evidence: Evidence) -> Check:
    hashes = {record.end for record in evidence.last}
    found = f"{_hashes(len(hashes))}: {_shortened(hashes)}"
    return Check(
        claim=f"all {evidence.ranks} ranks hold bit-identical parameters",
        how="sha256 on each rank, at the end",
        found=found if _complete(evidence, evidence.last) else _incomplete(evidence, evidence.last),
        held=_complete(evidence, evidence.last) and len(hashes) == 1 and None not in hashes,
    )


def _same_values(evidence: Evidence) -> Check:
    used: dict[tuple[int, int], list[object]] = {}
    for record in evidence.records:
        for step, values in record.used.items():
            used.setdefault((record.view, step), []).append(values)
    differ = [step for (_, step), values in used.items() if any(value != values[0] for value in values)]
    ran = {step for _, step in used}
    missing = sorted(set(range(evidence.last_step + 1)) - ran)
    short = [record for record in evidence.last if set(record.used) != set(range(record.start, evidence.last_step + 1))]
    found = f"steps 0 to {evidence.last_step}, no step differs"
    if differ or missing or short:
        found = f"steps that differ: {differ[:5]}; not run: {missing[:5]}; incomplete ranks: {len(short)}"
    return Check(
        claim="all ranks used equal values at every step",
        how="from the optimizers, every step of every rank",
        found=found,
        held=bool(used) and not differ and not missing and not short and _complete(evidence, evidence.last),
    )


def _one_step(evidence: Evidence, steered: Steered) -> Check:
    receipt = steered.receipt
    records = [record for record in evidence.records if receipt.step in record.used]
    first = {
        record.first_step_with(change.name, float(change.after))
        for change in receipt.changes
        if isinstance(change.after, (int, float))
        for record in records
    }
    held = receipt.holds and receipt.applied == evidence.ranks == len(records) and first == {receipt.step}
    return Check(
        claim=f"{format_changes(receipt.changes)} at one step",
        how=f"{steered.by}; from the optimizers",
        found=f"step {_steps(first)} on {evidence.ranks} ranks, {receipt.took_s:.2f} s"
        if held
        else f"receipt: {receipt.outcome} at step {receipt.step}; ranks: step {_steps(first)}",
        held=held,
    )


def _refused(refusal: RefusedValue) -> Check:
    return Check(
        claim=f"{refusal.asked} is refused before it is written",
        how="its key in etcd",
        found=f"etcd still holds {refusal.after}" if not refusal.written else f"etcd holds {refusal.after}",
        held=not refusal.written and refusal.before == refusal.after,
    )


def _saved_by_another(evidence: Evidence) -> Check:
    takeover = evidence.takeover
    killed = next((record for record in evidence.first if record.rank == takeover.killed_rank), None)
    unfinished = killed is not None and killed.end is None and takeover.step not in killed.saved
    other = takeover.saved_by != takeover.killed_rank
    return Check(
        claim=f"rank {takeover.killed_rank} dies saving step {takeover.step}: another saves it",
        how="kill -9; the registry in etcd",
        found=f"rank {takeover.by_rank} led after {takeover.took_ms:.0f} ms, rank {takeover.saved_by} saved it",
        held=unfinished and other and takeover.by_rank != takeover.killed_rank,
    )


def _met_again(evidence: Evidence) -> Check:
    formed = evidence.round
    return Check(
        claim="torchrun forms a new round over etcd v3",
        how="the round in etcd",
        found="no round was found"
        if formed is None
        else f"round {formed.number}, after {counted(formed.restarts, 'failure')}",
        held=formed is not None and formed.number > 1 and formed.restarts > 0,
    )


def _resumed(evidence: Evidence) -> Check:
    step = evidence.takeover.step
    saved = {record.saved[step] for record in evidence.first if step in record.saved}
    restored = {record.sha256 for record in evidence.last}
    starts = {record.start for record in evidence.last}
    held = _complete(evidence, evidence.last) and saved == restored and len(saved) == 1 and starts == {step + 1}
    return Check(
        claim="torchrun restarts and no step is lost",
        how="sha256 when saved and when restored",
        found=f"all ranks resume at step {_steps(starts)}, from {_shortened(restored)}"
        if held
        else f"saved {_shortened(saved)}, restored {_shortened(restored)}, resumed at step {_steps(starts)}",
        held=held,
    )


def _paused(evidence: Evidence) -> Check:
    step = evidence.pause.step
    ran = [record.rank for record in evidence.last if step in record.used]
    return Check(
        claim="paused ranks wait before one step, then continue",
        how="receipts; the steps that each rank ran",
        found=f"step {step} waited {evidence.pause.stood_s:.1f} s, then ran on {len(ran)} ranks",
        held=ran == list(range(evidence.ranks)),
    )


def _stopped(evidence: Evidence) -> Check:
    stop = evidence.stop
    lasts = {record.last_step for record in evidence.last}
    held = stop.code == 0 and lasts == {stop.checkpoint} and all(record.stopped for record in evidence.last)
    return Check(
        claim=f"SIGTERM on rank {stop.rank}: all save and exit",
        how="exit codes, the registry, the steps",
        found=f"last step {_steps(lasts)}, checkpoint of step {stop.checkpoint}, exit code {stop.code}, "
        f"{stop.took_s:.1f} s",
        held=held and _complete(evidence, evidence.last),
    )


def _footprint(evidence: Evidence) -> Check:
    grpc = any(record.grpc for record in evidence.last)
    threads = {name for record in evidence.last for name in record.threads if name != "MainThread"}
    found = ["grpc was imported"] if grpc else ["no grpc"]
    found.append(f"threads: {', '.join(sorted(threads))}" if threads else "one thread")
    return Check(
        claim="trainers have no etcd client, no thread",
        how="sys.modules, threading",
        found=", ".join(found),
        held=_complete(evidence, evidence.last) and not grpc and not threads,
    )


def _drifted(evidence: Evidence) -> Check:
    before = {item.before for item in evidence.baseline}
    after = {item.after for item in evidence.baseline}
    heard = [item.first_step_with(evidence.baseline_lr) for item in evidence.baseline]
    difference = max((item.difference for item in evidence.baseline), default=0.0)
    complete = _complete(evidence, evidence.baseline)
    steps = ", ".join("never" if step is None else str(step) for step in heard)
    apart = f"at {steps}; {_hashes(len(after))}, up to {difference:.1e} apart"
    found = apart if len(before) == 1 else f"{len(before)} hashes before anything was changed"
    return Check(
        claim="without Instep the ranks drift apart",
        how="the same training, each rank polls etcd",
        found=found if complete else _incomplete(evidence, evidence.baseline),
        held=complete and len(before) == 1 and len(after) > 1 and difference > 0,
    )


def _complete(evidence: Evidence, found: Sequence[RankRecord | BaselineRecord]) -> bool:
    return [item.rank for item in found] == list(range(evidence.ranks))


def _incomplete(evidence: Evidence, found: Sequence[RankRecord | BaselineRecord]) -> str:
    return f"records of ranks {[item.rank for item in found]} of {evidence.ranks}"


def _steps(steps: Iterable[int | None]) -> str:
    return " and ".join(sorted("never" if step is None else str(step) for step in steps)) or "none"


def _shortened(hashes: Iterable[str | None]) -> str:
    return ", ".join(f"{digest[:12]}…" for digest in sorted(digest or "nothing" for digest in hashes))


def _hashes(number: int) -> str:
    return f"{number} {'hash' if number == 1 else 'hashes'}"
