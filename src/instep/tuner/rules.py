"""The rules of the tuner: what each kind watches for, and what it asks for. Every default needs no editing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from instep.tuner.sample import DATA_WAIT, GPU_UTILIZATION, GRAD_NORM, LOSS, LOSS_SCALE

VERSION: Final = 1
"""Raised when a rule file of before would mean something else."""

Wish: TypeAlias = Literal["alert", "take_back", "recover", "cut_lr", "pause"]
"""What a rule may ask for. The steps after it are the same for all rules: see `escalation.py`."""

Steps: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
Few: TypeAlias = Annotated[int, Field(ge=1, le=256)]
"""Steps that are remembered one by one."""
Score: TypeAlias = Annotated[float, Field(gt=0, le=1000)]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, strict=True)


class _Rule(_Table):
    enabled: bool = True
    ask: bool = False
    """Whether an armed rule proposes its action to a person instead of acting."""


class Nonfinite(_Rule):
    """A value that is infinite or not a number, on any rank, in one report."""

    kind: Literal["nonfinite"] = "nonfinite"
    action: Wish = "recover"
    metrics: tuple[str, ...] = (LOSS, GRAD_NORM)
    """Gradients that are not finite are normal, and ignored, while a loss scale is reported: its scaler skips such
    steps."""


class Spike(_Rule):
    """Fast: in `hits` of the last `of` steps, the robust z of the log loss is above `z` and the loss is `rise` higher.

    It needs corroboration: a gradient spike within `gradient_within` steps and before the loss rose; a change, a
    restore or a new view within `brakes.change_within_steps`; or data that was too easy. New data has none of them, and
    is learned soon: a rise that nothing corroborates must reach `alone_rise` in `alone_hits` of the last `alone_of`
    steps.
    """

    kind: Literal["spike"] = "spike"
    action: Wish = "recover"
    metric: str = LOSS
    z: Score = 6.0
    rise: Share = 0.1
    hits: Steps = 4
    of: Few = 5
    gradient_within: Steps = 50
    alone_rise: Annotated[float, Field(gt=0, le=100)] = 0.3
    alone_hits: Steps = 12
    alone_of: Few = 16

    @model_validator(mode="after")
    def _check(self) -> Spike:
        for hits, of in ((self.hits, self.of), (self.alone_hits, self.alone_of)):
            if hits > of:
                raise ValueError(f"hits of {hits} are more than the {of} steps they are counted in")
        if self.alone_of < self.of:
            raise ValueError(f"alone_of of {self.alone_of} steps is below of, which is {self.of}")
        return self


class Level(_Rule):
    """Slow: the median of the last `recent` steps is above the median of `span` before, for `for` steps.

    It needs corroboration: a gradient spike within `gradient_within` steps, or a change within
    `brakes.change_within_steps`. An unannounced change of the data has neither.
    """

    kind: Literal["level"] = "level"
    action: Wish = "take_back"
    metric: str = LOSS
    errors: Score = 5.0
    """Standard errors of the median."""
    rise: Share = 0.03
    damage: Share = 0.1
    """A rise by more than that share has damaged the weights: going back repairs them, taking a change back cannot."""
    recent: Few = 16
    span: Few = 128
    for_steps: Steps = Field(8, alias="for")
    """Half as many after a gradient spike."""
    gradient_within: Steps = 50


class TooEasy(_Rule):
    """The loss falls at once to a fraction: the data repeats itself, or the targets have leaked into it."""

    kind: Literal["too_easy"] = "too_easy"
    action: Wish = "alert"
    metric: str = LOSS
    z: Score = 6.0
    fall: Share = 0.4
    hits: Steps = 4
    of: Few = 5


class Grad(_Rule):
    """The largest gradient norm is far above its median. It corroborates other rules and asks for nothing itself."""

    kind: Literal["grad"] = "grad"
    metric: str = GRAD_NORM
    z: Score = 8.0


class LossScale(_Rule):
    """The loss scale of mixed precision falls to `minimum`, or by `halvings` powers of two within `span` steps."""

    kind: Literal["loss_scale"] = "loss_scale"
    action: Wish = "recover"
    metric: str = LOSS_SCALE
    minimum: Annotated[float, Field(gt=0)] = 1.0
    halvings: Annotated[int, Field(ge=1, le=60)] = 8
    span: Steps = 100


class Plateau(_Rule):
    """The level of the loss has not fallen by `fall` for `for` steps."""

    kind: Literal["plateau"] = "plateau"
    action: Wish = "alert"
    metric: str = LOSS
    fall: Share = 0.002
    recent: Few = 64
    for_steps: Steps = Field(5000, alias="for")


class Threshold(_Rule):
    """Any metric above or below a fixed value for `for` steps. Values that are not finite do not count."""

    kind: Literal["threshold"] = "threshold"
    action: Wish = "alert"
    metric: str
    figure: Literal["mean", "min", "max", "last"] = "mean"
    above: float | None = None
    below: float | None = None
    for_steps: Steps = Field(1, alias="for")
    keep_firing_for: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Steps for which it fires after the last step that met the condition."""

    @model_validator(mode="after")
    def _check(self) -> Threshold:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either above or below")
        return self


class Stalled(_Rule):
    """No step for `after_s` seconds, and for `step_times` usual steps, while nothing is paused or evaluated."""

    kind: Literal["stalled"] = "stalled"
    action: Literal["alert"] = "alert"
    after_s: Annotated[float, Field(gt=0)] = 300.0
    step_times: Annotated[float, Field(ge=1)] = 20.0


class GpuLow(_Rule):
    """The GPUs are idle for `for` steps. Advice only: nothing is changed."""

    kind: Literal["gpu_low"] = "gpu_low"
    action: Literal["alert"] = "alert"
    metric: str = GPU_UTILIZATION
    below: Share = 0.4
    for_steps: Steps = Field(200, alias="for")


class InputBound(_Rule):
    """Waiting for data takes more than `above` of a step, for `for` steps. Advice only: nothing is changed."""

    kind: Literal["input_bound"] = "input_bound"
    action: Literal["alert"] = "alert"
    metric: str = DATA_WAIT
    above: Share = 0.3
    for_steps: Steps = Field(200, alias="for")


Rule: TypeAlias = Annotated[
    Nonfinite | Spike | Level | TooEasy | Grad | LossScale | Plateau | Threshold | Stalled | GpuLow | InputBound,
    Field(discriminator="kind"),
]

RULE_KINDS: Final[dict[str, type[_Rule]]] = {
    "nonfinite": Nonfinite,
    "spike": Spike,
    "level": Level,
    "loss_scale": LossScale,
    "too_easy": TooEasy,
    "grad": Grad,
    "threshold": Threshold,
    "plateau": Plateau,
    "stalled": Stalled,
    "gpu_low": GpuLow,
    "input_bound": InputBound,
}
"""By name, the most urgent first: if several rules ask for an action, the first one acts."""


class Bound(_Table):
    """Values that the tuner may set. The schema's bounds apply as well."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Bound:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Brakes(_Table):
    """What holds an action back, and how far an action goes. Steps are steps that were run, repeated ones included."""

    hold_off_steps: Steps = 10
    """After a view change, a restore, a resume, or a person's change."""
    cool_down_steps: Steps = 50
    """After an action."""
    budget_per_run: Annotated[int, Field(ge=1, le=50)] = 8
    """The last action of a budget is a pause."""
    budget_per_1000_steps: Annotated[int, Field(ge=1, le=50)] = 4
    max_age_s: Annotated[float, Field(gt=0)] = 10.0
    """Of the oldest node's report, in seconds."""
    min_reporting: Share = 0.5
    """Share of the ranks that must report."""
    change_within_steps: Steps = 100
    """A change so many steps before the first suspect step is a possible cause."""
    rewind_steps: Steps = 20
    """Distance of a checkpoint from the first suspect step."""
    max_rewind_steps: Steps = 10_000
    skip_margin: Steps = 100
    """Batches that are passed over after the last suspect one."""
    max_skip: Steps = 100_000
    lr: tuple[str, ...] = ("lr", "learning_rate")
    """Hyperparameters that are never raised."""
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    lr_floor: Share = 0.1
    """Smallest share of the value that a person has set."""
    incident_steps: Steps = 200
    """What begins so soon after an action belongs to the same incident: the next action goes further."""
    verify_steps: Steps = 100
    """After an action, before it is judged."""
    answer_steps: Steps = 1000
    """An action whose outcome is unknown blocks the next one for so long."""


class Rules(_Table):
    """All rules of a tuner. `Rules()` has one rule of each kind that needs no metric to be named."""

    version: Literal[1] = VERSION
    nan_by_design: tuple[str, ...] = ()
    """Metrics whose values need not be finite."""
    bounds: Mapping[str, Bound] = Field(default_factory=dict)
    brakes: Brakes = Brakes()
    rules: Mapping[str, Rule] = Field(default_factory=lambda: defaults())

    @property
    def enabled(self) -> tuple[tuple[str, Rule], ...]:
        """The enabled rules with their names, the most urgent kind first."""
        order = list(RULE_KINDS)
        items = [(name, rule) for name, rule in self.rules.items() if rule.enabled]
        return tuple(sorted(items, key=lambda item: (order.index(item[1].kind), item[0])))


def defaults() -> dict[str, Rule]:
    """One rule of each kind, except `threshold`, named like its kind."""
    return {name: kind() for name, kind in RULE_KINDS.items() if name != "threshold"}  # type: ignore[misc]  # the union


def watched(rule: Rule) -> tuple[str, ...]:
    """The metrics that a rule reads."""
    match rule:
        case Nonfinite():
            return rule.metrics
        case Stalled():
            return ()
        case _:
            return (rule.metric,)
