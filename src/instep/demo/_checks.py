"""What the demo claims, held against what the ranks wrote down. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from instep.control import ChangeReceipt, Facts, format_changes
from instep.demo._operator import Refusal
from instep.demo._proof import RankProof


@dataclass(frozen=True, slots=True)
class Steered(Facts):
    """One change of the operator: how it was asked for, and its receipt."""

    by: str
    receipt: ChangeReceipt


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one demo left behind. `alone` are the ranks that trained without Instep, told to use `alone_lr`."""

    ranks: int
    steps: int
    trained: tuple[RankProof, ...]
    steered: tuple[Steered, ...]
    refusal: Refusal
    alone: tuple[RankProof, ...]
    alone_lr: float


@dataclass(frozen=True, slots=True)
class Check(Facts):
    claim: str
    how: str
    found: str
    held: bool


def check(evidence: Evidence) -> tuple[Check, ...]:
    """Every claim of the demo; it succeeded when all of them held."""
    return (
        _same_parameters(evidence),
        _same_values(evidence),
        *(_one_step(evidence, steered) for steered in evidence.steered),
        _refused(evidence.refusal),
        _footprint(evidence),
        _drifted(evidence),
    )


def _same_parameters(evidence: Evidence) -> Check:
    hashes = {proof.sha256 for proof in evidence.trained}
    found = f"{_count(len(hashes), 'hash', 'hashes')}: {_shortened(hashes)}"
    return Check(
        claim=f"all {evidence.ranks} ranks hold bit-identical parameters",
        how="sha256 on each rank",
        found=found if _complete(evidence, evidence.trained) else _incomplete(evidence, evidence.trained),
        held=_complete(evidence, evidence.trained) and len(hashes) == 1,
    )


def _same_values(evidence: Evidence) -> Check:
    records = [proof.used for proof in evidence.trained]
    same = all(record == records[0] for record in records)
    ran = all(proof.steps == evidence.steps for proof in evidence.trained)
    changed = ", ".join(str(step) for step, _ in records[0][1:]) if records else ""
    found = f"equal, changed at {changed or 'no step'}" if same else "the records differ"
    return Check(
        claim="all ranks used equal values at every step",
        how=f"{evidence.steps} steps, from the optimizers",
        found=found if ran else f"steps run: {', '.join(str(proof.steps) for proof in evidence.trained)}",
        held=_complete(evidence, evidence.trained) and same and ran,
    )


def _one_step(evidence: Evidence, steered: Steered) -> Check:
    receipt = steered.receipt
    first = {
        proof.first_step_with(change.name, float(change.after))
        for change in receipt.changes
        if isinstance(change.after, (int, float))
        for proof in evidence.trained
    }
    held = receipt.holds and receipt.applied == evidence.ranks and first == {receipt.step}
    return Check(
        claim=f"{format_changes(receipt.changes)} at one step",
        how=f"{steered.by}; from the optimizers",
        found=f"step {_steps(first)} on {evidence.ranks} ranks, {receipt.took_s:.2f} s"
        if held
        else f"receipt: {receipt.outcome} at step {receipt.step}; ranks: step {_steps(first)}",
        held=held and _complete(evidence, evidence.trained),
    )


def _refused(refusal: Refusal) -> Check:
    return Check(
        claim=f"{refusal.asked} is refused before it is written",
        how="its key in etcd",
        found=f"etcd still holds {refusal.after}" if not refusal.written else f"etcd holds {refusal.after}",
        held=not refusal.written and refusal.before == refusal.after,
    )


def _footprint(evidence: Evidence) -> Check:
    grpc = any(proof.grpc for proof in evidence.trained)
    threads = {name for proof in evidence.trained for name in proof.threads if name != "MainThread"}
    found = ["grpc was imported"] if grpc else ["no grpc"]
    found.append(f"threads: {', '.join(sorted(threads))}" if threads else "one thread")
    return Check(
        claim="trainers have no etcd client, no thread",
        how="sys.modules, threading",
        found=", ".join(found),
        held=_complete(evidence, evidence.trained) and not grpc and not threads,
    )


def _drifted(evidence: Evidence) -> Check:
    before = {str(proof.more.get("before")) for proof in evidence.alone}
    after = {proof.sha256 for proof in evidence.alone}
    heard = [proof.first_step_with("lr", evidence.alone_lr) for proof in evidence.alone]
    difference = max((float(proof.more.get("difference", 0.0)) for proof in evidence.alone), default=0.0)
    complete = [proof.rank for proof in evidence.alone] == list(range(evidence.ranks))
    steps = ", ".join("never" if step is None else str(step) for step in heard)
    apart = f"at {steps}; {_count(len(after), 'hash', 'hashes')}, up to {difference:.1e} apart"
    found = apart if len(before) == 1 else f"{len(before)} hashes before anything was changed"
    return Check(
        claim="without Instep the ranks drift apart",
        how="the same training, own polling",
        found=found if complete else _incomplete(evidence, evidence.alone),
        held=complete and len(before) == 1 and len(after) > 1 and difference > 0,
    )


def _complete(evidence: Evidence, proofs: Sequence[RankProof]) -> bool:
    return [proof.rank for proof in proofs] == list(range(evidence.ranks))


def _incomplete(evidence: Evidence, proofs: Sequence[RankProof]) -> str:
    return f"proofs of ranks {[proof.rank for proof in proofs]} of {evidence.ranks}"


def _steps(steps: Iterable[int | None]) -> str:
    return " and ".join(sorted("never" if step is None else str(step) for step in steps))


def _shortened(hashes: Iterable[str]) -> str:
    return ", ".join(f"{digest[:12]}…" for digest in sorted(hashes))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
