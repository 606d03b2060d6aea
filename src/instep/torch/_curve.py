"""The bound lr of an optimizer whose schedulers go on steering it: an agreed value scales their curve."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ._field import Field, Group, fresh_like, number_in, rounded_like
from ._knob import Knob
from ._ratio import Kind, Number, point_of, rebased
from ._schedulers import Leaf, leaves_of, publish_lrs

# In the scheduler, so that a checkpoint made at an agreed zero still knows the point of the schedule.
HELD_POINTS = "instep_held_points"


class CurveKnob(Knob):
    """Keeps `lr = point of the schedule x ratio x agreed`; the point is a group's lr over its `initial_lr`.

    Both numbers are in the group, so a checkpoint tells the point, whatever was agreed when it was made. At an
    agreed zero both are zero, and the schedule goes on at the last value that was not: its points rest in the
    scheduler between two of its steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        field: Field,
        name: str,
        *,
        default: float,
        ratios: Sequence[float],
        roots: Sequence[LRScheduler],
        units: Sequence[float],
    ) -> None:
        """`units`: for each group the agreed value that what it holds now was made for, as a rule its default."""
        super().__init__(optimizer, field, name, kind=Kind.REAL, default=default, ratios=ratios)
        self._roots = tuple(roots)
        self._leaves = [Leaf(scheduler, units, ratios) for scheduler in leaves_of(roots)]
        self._awaits_points = False

    def apply(self, agreed: Number) -> None:
        """Scale the whole curve to `agreed`; at zero, hold zero until another value is agreed."""
        if self.agreed is None:
            for leaf in self._leaves:
                leaf.adopt(self._anchor)
        super().apply(agreed)
        self._forget_points()

    def reload(self) -> float | None:
        """Scale the point of the schedule that the optimizer was saved at. Returns what the other knobs do."""
        zeros = [group.get("initial_lr") for group, _ in self._shares() if "initial_lr" in group]
        self._awaits_points = self._points is None and any(number_in(base) == 0 for base in zeros)
        stale = super().reload()
        self._forget_points()
        return stale

    def reload_schedule(self) -> None:
        """Scale the schedule that was loaded; it keeps the position it was saved at."""
        if self._awaits_points and self._points is not None:
            # The optimizer came first, saved at an agreed zero: only now is its point of the schedule known.
            for group, _ in self._shares():
                group["initial_lr"] = fresh_like(group.get("initial_lr"), 0.0)
        self._write()

    def before_step(self) -> None:
        """Give the schedulers back the lr they left, if the groups hold an agreed zero."""
        self.look()  # they may compute the next lr from what other code has written
        if self.agreed == 0 and self._points is not None:
            for (group, target), point in zip(self._shares(), self._points, strict=False):
                self.field.write(group, point * target)

    def after_step(self) -> None:
        """Put away what the schedulers computed and hold zero again, while zero is agreed."""
        self._awaits_points = False
        if self.agreed == 0:
            self._put([number_in(self.field.held(group)) for group in self._groups])
            self._publish()
        else:
            self._forget_points()

    @property
    def _points(self) -> Sequence[float] | None:
        points: Sequence[float] | None = getattr(self._roots[0], HELD_POINTS, None)
        return points

    def _forget_points(self) -> None:
        if self.agreed != 0 and self._points is not None:
            delattr(self._roots[0], HELD_POINTS)

    def _shares(self) -> list[tuple[Group, float]]:
        """The groups, and the base of each: its share of the last agreed value that was not zero."""
        return [(group, ratio * self._anchor) for group, ratio in zip(self._groups, self.ratios, strict=False)]

    def _write(self) -> None:
        # All groups are read before one is written: they may share one tensor.
        points = self._points or [1.0] * len(self.ratios)
        self._put([self._moved(*share, point) for share, point in zip(self._shares(), points, strict=False)])
        for leaf in self._leaves:
            leaf.rescale(self._anchor)
        self._publish()

    def _moved(self, group: Group, target: float, point: float) -> float:
        lr = number_in(self.field.held(group))
        base = group.get("initial_lr", lr)
        if number_in(base) == 0:
            return point * target
        return rebased(lr, number_in(base), rounded_like(base, target))

    def _put(self, lrs: Sequence[float]) -> None:
        shares, zero = self._shares(), self.agreed == 0
        if zero:
            points = [point_of(lr, target) for (_, target), lr in zip(shares, lrs, strict=False)]
            setattr(self._roots[0], HELD_POINTS, points)
        for (group, target), lr in zip(shares, lrs, strict=False):
            self.field.write(group, 0.0 if zero else lr)
            group["initial_lr"] = fresh_like(group.get("initial_lr"), 0.0 if zero else target)

    def _expected(self, ratio: float) -> str:
        return f"and neither the agreed {self.name} {self.agreed:g} nor its schedule has set that"

    def _is_agreed(self, group: Group, ratio: float) -> bool:
        return self.agreed == 0 and number_in(self.field.held(group)) == 0

    def _stale(self, group: Group, ratio: float) -> float | None:
        assert self.agreed is not None
        base = group.get("initial_lr")
        if ratio == 0 or base is None or number_in(base) == rounded_like(base, ratio * self.agreed):
            return None
        return number_in(base) / ratio

    def _publish(self) -> None:
        publish_lrs(self._roots, [self.field.held(group) for group in self._groups])
