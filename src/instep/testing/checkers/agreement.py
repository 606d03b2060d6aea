"""Step agreement: no step is run with two configs, and each is run with the one that was agreed on for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from instep.errors import SettingsError
from instep.scalar import Scalar, format_scalar
from instep.testing.checkers.jsonl import record
from instep.testing.checkers.stepmap import StepMap, Stretch
from instep.testing.checkers.verdict import Findings, Verdict, Violation

_LAST_STEP = 1 << 62


@record
@dataclass(frozen=True, slots=True)
class ConfigRun:
    """`rank` ran the steps `first_step` to `last_step`, both included, with one config, named by its digest.

    `life` counts how often the training as a whole has gone back to a checkpoint: ranks that go back together share a
    life; a rank that was replaced and went on where the others stood has stayed in theirs. A run may be recorded in
    pieces, and in any order.
    """

    rank: int
    first_step: int
    last_step: int
    digest: str
    life: int = 0

    def __post_init__(self) -> None:
        if self.last_step < self.first_step:
            raise SettingsError(f"rank {self.rank} cannot have run steps {self.first_step} to {self.last_step}")


@record
@dataclass(frozen=True, slots=True)
class Commit:
    """An agreed change: from step `gate` on all of `values` hold, read from what was desired at `revision`.

    `values` are the complete config, as pairs. The config that a run starts with is a commit too: plan 0, at its first
    step. `life`: the one of ConfigRun in which it was made.
    """

    plan: int
    gate: int
    revision: int
    values: tuple[tuple[str, Scalar], ...]
    life: int = 0

    @property
    def digest(self) -> str:
        """The digest of the values that were committed."""
        return config_digest(dict(self.values))


def config_digest(values: Mapping[str, Scalar]) -> str:
    """A short name for a config: the same for equal values, whatever their order. 3 and 3.0 are the same value."""
    text = "\n".join(f"{name}={format_scalar(_plain(values[name]))}" for name in sorted(values))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_steps(runs: Iterable[ConfigRun], *, exact_from: Mapping[int, int] | None = None) -> Verdict:
    """Whether all ranks ran each step with the same config, and steps that were run again had that of the first time.

    The first holds within each life without exception, for a rank that repeats a step too. `exact_from` says for a
    life from which step on its steps must have the config of the life before; a life that is not named owes that for
    all its steps. A training that comes back from a checkpoint more than one change back names the gate of the last
    change but one: what lies before that it runs with later values, on all ranks the same (docs/guarantees.md, "Known
    limits"). Memory grows with the number of changes, not of steps.
    """
    lives: dict[int, StepMap] = {}
    findings = Findings("steps")
    for run in runs:
        findings.checked += 1
        steps = lives.setdefault(run.life, StepMap())
        new = Stretch(run.first_step, run.last_step, run.digest, f"rank {run.rank}")
        for other in steps.fill(new):
            steps_text = _steps(other.first, other.last)
            sentence = f"{steps_text}: {new.witness} ran with {new.digest}, {other.witness} with {other.digest}"
            findings.add("one config", sentence + (f" (life {run.life})" if run.life else ""))
    findings.extend(_repeats(lives, exact_from or {}))
    return findings.verdict(f"{sum(map(len, lives.values()))} stretches" if lives else "")


def check_commits(
    commits: Iterable[Commit], runs: Iterable[ConfigRun], *, exact_from: Mapping[int, int] | None = None
) -> Verdict:
    """Whether every step was run with the config of the last commit whose gate lies at or before it.

    For ranks that agree with each other on what nobody has decided, and for those that missed a change together.
    Steps before the first gate are not judged, nor those of a life before its `exact_from` (see `check_steps`).
    Limit: a commit whose gate nobody reached is not looked at.
    """
    agreed = _by_life(sorted(commits, key=lambda commit: (commit.life, commit.plan)))
    findings = Findings("commits")
    for run in runs:
        findings.checked += 1
        first = max(run.first_step, (exact_from or {}).get(run.life, run.first_step))
        for wanted in _of_life(agreed, run.life).overlapping(first, run.last_step):
            if wanted.digest != run.digest:
                steps, ran = _steps(wanted.first, wanted.last), f"rank {run.rank} ran with {run.digest}"
                findings.add("as agreed", f"{steps}: {ran}, but {wanted.witness} says {wanted.digest}")
    if not agreed:
        return Verdict("undecided", "commits", findings.checked, note="no commit was recorded")
    return findings.verdict()


def _repeats(lives: Mapping[int, StepMap], exact_from: Mapping[int, int]) -> Iterator[Violation]:
    past = StepMap()
    for life in sorted(lives):
        owed_from = exact_from.get(life, 0)
        for stretch in lives[life]:
            for other in past.overlapping(max(stretch.first, owed_from), stretch.last):
                if other.digest != stretch.digest:
                    yield Violation(
                        "as before",
                        f"{_steps(other.first, other.last)}: run again in life {life} with {stretch.digest} "
                        f"({stretch.witness}), before with {other.digest} ({other.witness})",
                    )
        for stretch in lives[life]:
            past.overlay(stretch)


def _by_life(commits: Iterable[Commit]) -> dict[int, StepMap]:
    """What was agreed for each step, as it stood at the end of each life."""
    agreed: dict[int, StepMap] = {}
    steps = StepMap()
    for commit in commits:
        if commit.life not in agreed:
            steps = _copy(steps)
        steps.overlay(Stretch(commit.gate, _LAST_STEP, commit.digest, f"plan {commit.plan}"))
        agreed[commit.life] = steps
    return agreed


def _of_life(agreed: Mapping[int, StepMap], life: int) -> StepMap:
    """A life without commits of its own goes by those of the lives before."""
    known = [made for made in agreed if made <= life]
    return agreed[max(known)] if known else StepMap()


def _copy(steps: StepMap) -> StepMap:
    copied = StepMap()
    for stretch in steps:
        copied.overlay(stretch)
    return copied


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _plain(value: Scalar) -> Scalar:
    """Whole floats as integers, as `instep.scalar.same` has it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
