"""What the tuner says to people: detections, brakes, actions and verdicts, each as one sentence or line. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from instep.scalar import Scalar, format_scalar, shortened
from instep.tuner.verdict import Action, Brake, BrakeName, Detection, Judged, Progress, RuleVerdict, Verdict

_FOUND: Mapping[str, str] = {
    "nonfinite": "{metric} was not finite in step {suspect}{rank}",
    "spike": "{metric} rose from {normal} to {value} (z {figure}, limit {limit}){evidence}, "
    "suspect since step {suspect}",
    "level": "the level of {metric} rose from {normal} to {value} ({figure} standard errors, limit {limit}){evidence}, "
    "suspect since step {suspect}",
    "too_easy": "{metric} fell at once from {normal} to {value} (z {figure}, limit {limit}) in step {suspect}: "
    "look for repeated data or leaked targets",
    "grad": "{metric} rose from {normal} to {value} (z {figure}, limit {limit}) in step {suspect}{rank}",
    "loss_scale": "{metric} fell from {normal} to {value}, suspect since step {suspect}",
    "plateau": "the level of {metric} has not fallen below {normal} for {figure} steps (limit {limit})",
    "threshold": "{metric} is {figure} (limit {limit}) since step {suspect}{rank}",
    "stalled": "no step after step {last} for {figure} s (limit {limit} s)",
    "gpu_low": "{metric} is {figure} (limit {limit}) since step {suspect}: larger batches, fewer transfers, or fewer "
    "GPUs would use them better; nothing is changed",
    "input_bound": "{figure} of each step waits for data (limit {limit}) since step {suspect}: raise num_workers or "
    "prefetch_factor of the DataLoader (they count from its next iter() on); nothing is changed",
}
_HELD: Mapping[BrakeName, str] = {
    "shadow": "shadow mode: the rule is not armed (--act {figure})",
    "rule file": "{figure}",
    "silenced": "a person has switched the tuner off ('instep tune RUN --on' switches it on)",
    "paused": "the run is paused",
    "stale": "the oldest report is {figure} s old (limit {limit} s)",
    "partial": "only {figure} of the ranks report (limit {limit})",
    "others ill": "{figure} other runs are ill at the same time: the cause is not in this run",
    "hold-off": "{figure} steps since {limit_of}; it waits for {limit}",
    "cool-down": "{figure} steps since the last action; it waits for {limit}",
    "open action": "the outcome of action {figure} is not known yet",
    "budget": "the budget is used: {figure} of {limit}",
    "last action": "it is the last action of the budget",
    "no checkpoint": "no usable checkpoint: {figure} known, none far enough {limit}",
    "too far back": "the newest usable checkpoint is {figure} steps back (limit {limit})",
    "no data offset": "the script declares no data offset (instep.data_offset()), so no data can be passed over",
    "bounds": "{figure} is not allowed: the limit is {limit}",
    "nothing to set": "there is nothing to lower: {figure} ({limit})",
    "waits for a person": "action {figure} was the last that the tuner may take here: a person has to look",
}
_LACKS: Mapping[str, str] = {
    "steps": "for {have} of {need} steps",
    "hits": "{have} of {need} steps stand out",
    "evidence": "it has risen, without a gradient spike or a change that explains it",
    "reference": "too few steps to compare with yet",
    "reports": "nobody reports its metric",
    "never finite": "a metric was never finite: list it under nan_by_design if that is meant",
}


def number(value: float | str | None) -> str:
    """`0.00031`, `12400`, `nan`: four significant digits."""
    if value is None:
        return "a value that is not finite"
    if isinstance(value, str):
        return value
    if value > 1e15 or value < -1e15:
        return "a huge number"
    if value != value:
        return "nan"
    if 1000 <= abs(value) < 1e9:
        return f"{value:.0f}"
    return f"{value:.4g}"


def detection(kind: str, found: Detection) -> str:
    """What a rule has found."""
    because = {"gradient": "a gradient spike", "change": "a recent change", "too easy": "data that was too easy"}
    evidence = " and ".join(because[item] for item in found.evidence)
    return _FOUND[kind].format(
        metric=found.metric,
        suspect=found.suspect,
        last=found.last,
        figure=number(found.figure),
        limit=number(found.limit),
        value=number(found.value),
        normal=number(found.normal),
        rank="" if found.rank is None else f" on rank {found.rank}",
        evidence=f" after {evidence}" if evidence else "",
    )


def brake(item: Brake) -> str:
    """Why an action is held back."""
    limit, _, event = number(item.limit).partition(" after ")
    return _HELD[item.name].format(figure=number(item.figure), limit=limit, limit_of=event)


def progress(item: Progress) -> str:
    """What a rule that watches is missing; empty if nothing."""
    return _LACKS[item.lacks].format(have=item.have, need=item.need) if item.lacks else ""


def changes(values: Mapping[str, tuple[Scalar, Scalar]]) -> str:
    """`lr 0.03 → 0.0003, clip 2 → 1`."""
    return ", ".join(
        f"{name} {shortened(format_scalar(old))} → {shortened(format_scalar(new))}"
        for name, (old, new) in values.items()
    )


def action(item: Action) -> str:
    """What an action does: `go back to checkpoint 250-17, set lr 0.3 → 0.003, pass over 173 batches`."""
    parts: list[str] = []
    if item.checkpoint is not None:
        parts.append(f"go back to checkpoint {item.checkpoint}")
    if item.changes:
        verb = {"take_back": "take back", "cut_lr": "lower", "revert": "set back"}.get(item.kind, "set")
        parts.append(f"{verb} {changes(item.changes)}")
    if item.raise_offset:
        parts.append(f"pass over {item.raise_offset} batches ({item.offset})")
    return ", ".join(parts) or "pause for a person"


def reason(item: Action, kind: str, found: Detection, instead: Brake | None) -> str:
    """The reason of an action, for the history. `instead`: why it is a pause and not something milder."""
    text = f"{detection(kind, found)}; {action(item)}"
    return f"{text}, because {brake(instead)}" if instead is not None else text


def reason_of_revert(item: Action, cut: str) -> str:
    return f"action {cut} did not help; {action(item)}"


def judged(item: Judged) -> str:
    """What became of an action."""
    levels = [f"{name} {number(value)}" for name, value in _levels(item) if value is not None]
    return f"action {item.id}: {item.judgement}" + (f" (loss {', '.join(levels)})" if levels else "")


def _levels(item: Judged) -> tuple[tuple[str, float | None], ...]:
    return ("before", item.before), ("peak", item.peak), ("after", item.after)


def rule(item: RuleVerdict) -> str:
    """One line for a rule: `spike: fired: loss rose ...; wants: ...; held back: ...`."""
    armed = "" if item.armed else " (shadow)"
    if item.detection is None:
        missing = progress(item.progress)
        return f"{item.rule}{armed}: {item.status}" + (f": {missing}" if missing else "")
    parts = [f"{item.rule}{armed}: {item.status}: {detection(item.kind, item.detection)}"]
    if item.wants is not None:
        parts.append(f"wants: {action(item.wants)}")
    parts += [f"held back: {brake(held)}" for held in item.brakes]
    return "; ".join(parts)


def verdict(item: Verdict) -> tuple[str, ...]:
    """The lines of a verdict: rules that are not quiet, the action, what became of earlier ones."""
    lines = [rule(found) for found in item.rules if found.status != "quiet"]
    if item.action is not None:
        asks = "proposes" if item.action.ask else "acts"
        lines.append(f"step {item.step}: {item.action.rule} {asks} ({item.action.id}): {item.action.reason}")
    lines += [judged(found) for found in item.judged]
    return tuple(lines)
