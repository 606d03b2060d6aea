"""The decision of the tuner: a state and a sample in, a state and a verdict out. Pure and deterministic.

detection → confirmation → corroboration → brakes → one action at most. Distances in time are counted in steps that were
run. The same samples give the same verdicts, on any machine, and from any state that was stored and read again.

Promise: never raises, whatever the sample holds; never more actions than the budgets; never the same checkpoint twice
for one place; never a higher learning rate than agreed, except to set back a cut of its own.
Limit: an action is counted when it is decided. The driver reports its outcome by `Sample.journal` or by an event.
"""

from __future__ import annotations

from dataclasses import replace

from instep.tuner.brakes import brakes_of, counts, left
from instep.tuner.escalation import revert_of, wanted
from instep.tuner.observe import observed
from instep.tuner.recovery import usable_checkpoints
from instep.tuner.robust import level, recent
from instep.tuner.rules import Rule, Threshold, watched
from instep.tuner.sample import LOSS, Judgement, Sample
from instep.tuner.state import MAX_LEDGER, LedgerEntry, Memory, State
from instep.tuner.verdict import Action, Brake, Judged, Progress, RuleVerdict, Status, Verdict

_SETTLED_STEPS = 100
"""Steps after which a metric that was not reported is called unreported."""
_RECENT = 16
_ABOUT_WEIGHTS = ("nonfinite", "spike", "level", "loss_scale")
"""Kinds of rules that doubt the weights, and with them the checkpoints."""


def decide(state: State, sample: Sample) -> tuple[State, Verdict]:
    """What the tuner makes of a sample, and the state for the next one."""
    state = observed(state, sample)
    state, judged = _judged(state)
    rules = tuple(_verdict_of(state, sample, name, rule) for name, rule in state.rules.enabled)
    action = _action(state, sample, rules)
    state = _announced(state, rules)
    if action is not None:
        state = _noted(state, action, rules)
    suspect, pins = _suspect(state, sample, rules)
    verdict = Verdict(
        step=state.step,
        rules=rules,
        action=action,
        judged=judged,
        budget_left=max(0, left(state)),
        suspect=suspect,
        pins=pins,
        unreported=_unreported(state),
    )
    return state, verdict


def _verdict_of(state: State, sample: Sample, name: str, rule: Rule) -> RuleVerdict:
    memory = state.memories.get(name, Memory())
    armed = name in state.armed
    found = memory.detection
    if found is None:
        progress = memory.progress
        if _is_unreported(state, rule):
            progress = Progress(lacks="reports")
        status: Status = "watching" if progress.lacks in ("steps", "hits", "evidence", "never finite") else "quiet"
        return RuleVerdict(rule=name, kind=rule.kind, status=status, armed=armed, progress=progress)
    wants, brakes = wanted(state, sample, name, found)
    if wants is not None:
        brakes = (*brakes, *brakes_of(state, sample, asks=rule.ask))
        if not armed:
            brakes = (Brake("shadow", name), *brakes)
    return RuleVerdict(
        rule=name,
        kind=rule.kind,
        status="fired",
        armed=armed,
        began=not memory.announced,
        progress=memory.progress,
        detection=found,
        wants=wants,
        brakes=brakes,
    )


def _action(state: State, sample: Sample, rules: tuple[RuleVerdict, ...]) -> Action | None:
    """The action to take now: that of the most urgent rule, else a revert that is due."""
    for rule in rules:
        if rule.wants is not None and not rule.brakes:
            return rule.wants
    for entry in state.ledger:
        if entry.kind != "cut_lr" or entry.judgement != "not helped" or entry.reverted:
            continue
        action = revert_of(state, sample, entry)
        if action is not None and entry.rule in state.armed and not brakes_of(state, sample, asks=False):
            return action
    return None


def _announced(state: State, rules: tuple[RuleVerdict, ...]) -> State:
    began = {rule.rule for rule in rules if rule.began}
    if not began:
        return state
    memories = {
        name: replace(memory, announced=True) if name in began else memory for name, memory in state.memories.items()
    }
    return replace(state, memories=memories)


def _noted(state: State, action: Action, rules: tuple[RuleVerdict, ...]) -> State:
    """The state after an action was decided: it counts from now on, whatever becomes of it."""
    found = next((rule.detection for rule in rules if rule.rule == action.rule), None)
    on_loss = found is not None and found.metric == LOSS
    entry = LedgerEntry(
        id=action.id,
        kind=action.kind,
        rule=action.rule,
        step=action.step,
        suspect=action.suspect,
        ran=state.ran,
        checkpoint=action.checkpoint,
        checkpoint_step=action.checkpoint_step,
        changes=action.changes,
        skipped_to=action.skipped_to,
        before=found.normal if found is not None and on_loss else None,
        peak=found.value if found is not None and on_loss else None,
        ask=action.ask,
    )
    ledger = tuple(
        replace(item, reverted=True) if action.kind == "revert" and _is_reverted(item, action) else item
        for item in state.ledger
    )
    return replace(state, ledger=(*ledger, entry)[-MAX_LEDGER:], actions=state.actions + 1)


def _is_reverted(entry: LedgerEntry, action: Action) -> bool:
    return entry.kind == "cut_lr" and action.changes == {name: (new, old) for name, (old, new) in entry.changes.items()}


def _suspect(state: State, sample: Sample, rules: tuple[RuleVerdict, ...]) -> tuple[int | None, tuple[str, ...]]:
    """The first suspect step, and the two newest checkpoints before it. They stay pinned until a recovery is judged."""
    firing = [rule.wants.suspect for rule in rules if rule.wants is not None and rule.kind in _ABOUT_WEIGHTS]
    waiting = [
        entry.suspect
        for entry in state.ledger
        if entry.kind == "recover" and entry.judgement is None and entry.outcome != "rejected" and counts(state, entry)
    ]
    if not firing and not waiting:
        return None, ()
    pins = usable_checkpoints(state, sample, min([*firing, *waiting]))[:2]
    return min(firing, default=None), tuple(item.id for item in pins)


def _judged(state: State) -> tuple[State, tuple[Judged, ...]]:
    """Judges the actions that were carried out `verify_steps` ago."""
    judged: list[Judged] = []
    ledger = list(state.ledger)
    for number, entry in enumerate(state.ledger):
        if entry.outcome != "done" or entry.judgement is not None or entry.kind == "pause":
            continue
        if entry.settled_ran is None or state.ran - entry.settled_ran < state.rules.brakes.verify_steps:
            continue
        entries = recent(state.series.get(LOSS, ()), _RECENT, 1)
        result = Judged(
            id=entry.id,
            judgement=_judgement(state, entry, ledger[number + 1 :]),
            before=entry.before,
            peak=entry.peak,
            after=level(entries) if entries else None,
        )
        judged.append(result)
        ledger[number] = replace(entry, judgement=result.judgement)
    return (replace(state, ledger=tuple(ledger)), tuple(judged)) if judged else (state, ())


def _judgement(state: State, entry: LedgerEntry, later: list[LedgerEntry]) -> Judgement:
    if any(item.outcome == "done" and item.kind != "revert" for item in later):
        return "not helped"
    if state.person_ran is not None and state.person_ran > (entry.settled_ran or 0):
        return "unsure"
    for name, rule in state.rules.enabled:
        memory = state.memories.get(name)
        asks = name == entry.rule if entry.kind == "cut_lr" else getattr(rule, "action", "alert") != "alert"
        if asks and memory is not None and memory.detection is not None:
            return "not helped"
    return "verified"


def _unreported(state: State) -> tuple[str, ...]:
    missing = [name for _, rule in state.rules.enabled if _is_unreported(state, rule) for name in watched(rule)]
    return tuple(name for name in dict.fromkeys(missing) if name not in state.reported)


def _is_unreported(state: State, rule: Rule) -> bool:
    """A rule that reads several metrics needs one of them."""
    names = watched(rule)
    late = state.ran >= _SETTLED_STEPS or isinstance(rule, Threshold)
    return bool(names) and late and not any(name in state.reported for name in names)
