"""Step agreement: no step runs with two configs, and each step runs with the config that was agreed on for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from instep.errors import SettingsError
from instep.scalar import Scalar, format_scalar
from instep.testing.checkers.jsonl import record
from instep.testing.checkers.stepmap import StepMap, StepRange
from instep.testing.checkers.verdict import Findings, Verdict, Violation

_LAST_STEP = 1 << 62


@record
@dataclass(frozen=True, slots=True)
class ConfigRun:
    """`rank` ran the steps from `first_step` to `last_step`, inclusive, with one config, given by its digest.

    `life` counts how often the whole training has gone back to a checkpoint. Ranks that go back together share a life;
    a replaced rank that continued where the others were stays in theirs. A run may be recorded in pieces, in any order.
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
    """An agreed change: from step `gate` on, the config is `values`, from what was desired at `revision`.

    `values` are the complete config, as pairs. The config that a run starts with is a commit too: plan 0, at its first
    step. `life`: as in ConfigRun, the life in which the commit was made.
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
    """A short name for a config, independent of the order of values. 3 and 3.0 are the same value."""
    text = "\n".join(f"{name}={format_scalar(_plain(values[name]))}" for name in sorted(values))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_steps(runs: Iterable[ConfigRun], *, exact_from: Mapping[int, int] | None = None) -> Verdict:
    """Whether all ranks ran each step with the same config, and repeated steps had the config of the first time.

    The first rule has no exception within a life, also for a rank that repeats a step. `exact_from` gives, per life,
    the step from which its steps must have the config of the life before; without an entry, all of its steps must. A
    training that resumes from a checkpoint more than one change old passes the gate of the last change but one: it runs
    the steps before that with later values, the same on all ranks (docs/guarantees.md, "Known limits"). Memory grows
    with the number of changes, not of steps.
    """
    lives: dict[int, StepMap] = {}
    findings = Findings("steps")
    for run in runs:
        findings.checked += 1
        steps = lives.setdefault(run.life, StepMap())
        new = StepRange(run.first_step, run.last_step, run.digest, f"rank {run.rank}")
        for other in steps.fill(new):
            steps_text = _steps(other.first, other.last)
            sentence = f"{steps_text}: {new.witness} ran with {new.digest}, {other.witness} with {other.digest}"
            findings.add("one config", sentence + (f" (life {run.life})" if run.life else ""))
    findings.extend(_repeats(lives, exact_from or {}))
    return findings.verdict(f"{sum(map(len, lives.values()))} ranges" if lives else "")


def check_commits(
    commits: Iterable[Commit], runs: Iterable[ConfigRun], *, exact_from: Mapping[int, int] | None = None
) -> Verdict:
    """Whether every step ran with the config of the last commit with a gate at or before it.

    This finds ranks that agree on something that was never decided, and ranks that all missed a change. Steps before
    the first gate are not checked, nor steps of a life before its `exact_from` (see `check_steps`). Limit: a commit
    whose gate no rank reached is not checked.
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
        for step_range in lives[life]:
            for other in past.overlapping(max(step_range.first, owed_from), step_range.last):
                if other.digest != step_range.digest:
                    yield Violation(
                        "as before",
                        f"{_steps(other.first, other.last)}: run again in life {life} with {step_range.digest} "
                        f"({step_range.witness}), before with {other.digest} ({other.witness})",
                    )
        for step_range in lives[life]:
            past.overlay(step_range)


def _by_life(commits: Iterable[Commit]) -> dict[int, StepMap]:
    """The agreed config of each step at the end of each life."""
    agreed: dict[int, StepMap] = {}
    steps = StepMap()
    for commit in commits:
        if commit.life not in agreed:
            steps = _copy(steps)
        steps.overlay(StepRange(commit.gate, _LAST_STEP, commit.digest, f"plan {commit.plan}"))
        agreed[commit.life] = steps
    return agreed


def _of_life(agreed: Mapping[int, StepMap], life: int) -> StepMap:
    """The agreed configs of a life; without its own commits, those of the last life that has some."""
    known = [made for made in agreed if made <= life]
    return agreed[max(known)] if known else StepMap()


def _copy(steps: StepMap) -> StepMap:
    copied = StepMap()
    for step_range in steps:
        copied.overlay(step_range)
    return copied


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _plain(value: Scalar) -> Scalar:
    """Converts whole floats to integers, which `instep.scalar.same` treats as equal."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
