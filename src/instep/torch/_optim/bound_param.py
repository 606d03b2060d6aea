"""One bound key: the ratios its groups keep, and the agreed value they hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from instep.errors import BindError

from .field import Field, Group, fresh_like, number_in, rounded_like
from .ratio import Number, ValueKind, anchor_of, point_of, ratio_of, rebased, share_of
from .schedulers import Leaf, leaves_of, publish_lrs

# Stored in the scheduler: a checkpoint made at an agreed zero then still has the point of the schedule.
HELD_POINTS = "instep_held_points"


class BoundParam:
    """Holds `ratio x agreed` under one key of every group, and reports what a checkpoint held instead.

    Looks the groups up at each use, because `load_state_dict` replaces them. Remembers their tensors, because a
    compiled step or a CUDA graph reads exactly those: after a load it puts the original tensor back.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        field: Field,
        name: str,
        *,
        kind: ValueKind,
        default: float,
        ratios: Sequence[float],
    ) -> None:
        self.field = field
        self.name = name
        self.kind = kind
        self.ratios = list(ratios)
        self.agreed: Number | None = None
        self._optimizer = optimizer
        self._anchor = default
        self._tensors = [field.tensor(group) for group in self._groups]
        self._marks: list[object] = []
        self._found: str | None = None

    def __repr__(self) -> str:
        ratios = ", ".join(f"{ratio:.6g}" for ratio in self.ratios)
        return f"{self.field} = ({ratios}) × {self.name} {self.agreed!r}"

    @property
    def _groups(self) -> Sequence[Group]:
        return self._optimizer.param_groups

    def apply(self, agreed: Number) -> None:
        """Sets every group to its share of `agreed`, and the optimizer's default to `agreed`.

        Because the default follows, a group that is added later starts from the agreed value with its own ratio.
        """
        self._add_new_groups()
        self.agreed = agreed
        self._anchor = anchor_of(agreed, self._anchor)
        self._write()
        self._follow_default(agreed)

    def reload(self) -> float | None:
        """Applies the agreed value again after the optimizer was loaded.

        Returns the agreed value that the checkpoint was made with, if it is known and differs from the live one.
        """
        if self.agreed is None:
            return None
        found = (self._stale(group, ratio) for group, ratio in zip(self._groups, self.ratios, strict=False))
        stale = next((value for value in found if value is not None), None)
        self._restore_tensors()
        self._write()
        return stale

    def mark_expected(self) -> None:
        """Remembers the current values as the expected ones: this binding or its schedulers wrote them."""
        self._marks = [self.field.mark(group) for group in self._groups[: len(self.ratios)]]

    def check_drift(self) -> None:
        """Records the first group whose value changed since `mark_expected`: other code wrote it."""
        for index, (group, ratio, mark) in enumerate(zip(self._groups, self.ratios, self._marks, strict=False)):
            if self.field.mark(group) != mark and not self._is_agreed(group, ratio):
                self._found = f"{self._of_group(index)} {self._expected(ratio)}"
                return

    def drift(self) -> str | None:
        """The drift found since the last call, now included; None if there is none."""
        self.check_drift()
        found, self._found = self._found, None
        return found

    def _of_group(self, index: int) -> str:
        held = number_in(self.field.held(self._groups[index]))
        return f"group {index} of the optimizer holds {self.field}={held:.6g}"

    def _expected(self, ratio: float) -> str:
        assert self.agreed is not None
        return f"instead of {share_of(ratio, self.agreed, self.kind):.6g}"

    def _is_agreed(self, group: Group, ratio: float) -> bool:
        assert self.agreed is not None
        held = self.field.held(group)
        return number_in(held) == rounded_like(held, share_of(ratio, self.agreed, self.kind))

    def before_step(self) -> None:
        """Called before the schedulers step."""

    def after_step(self) -> None:
        """Called after the schedulers have stepped."""

    def reload_schedule(self) -> None:
        """Called after a scheduler was loaded."""

    def _write(self) -> None:
        assert self.agreed is not None
        for group, ratio in zip(self._groups, self.ratios, strict=False):
            self.field.write(group, share_of(ratio, self.agreed, self.kind))

    def _stale(self, group: Group, ratio: float) -> float | None:
        """The agreed value that `group` was loaded with, if it differs from the live one; None at ratio 0."""
        assert self.agreed is not None
        held = self.field.held(group)
        loaded = number_in(held)
        live = rounded_like(held, share_of(ratio, self.agreed, self.kind))
        return None if ratio == 0 or loaded == live else loaded / ratio

    def _restore_tensors(self) -> None:
        loaded = [number_in(self.field.held(group)) for group in self._groups]
        for group, tensor, value in zip(self._groups, self._tensors, loaded, strict=False):
            if tensor is not None and self.field.held(group) is not tensor:
                self.field.put(group, tensor)
                self.field.write(group, value)

    def _add_new_groups(self) -> None:
        default = number_in(self.field.held(self._optimizer.defaults))
        for group in self._groups[len(self.ratios) :]:
            value = number_in(self.field.held(group))
            self.ratios.append(1.0 if value == default else checked_ratio(self.field, value, self._anchor))
            self._tensors.append(self.field.tensor(group))

    def _follow_default(self, agreed: Number) -> None:
        defaults = self._optimizer.defaults
        held = self.field.held(defaults)
        # A tensor default is often the same tensor that the groups hold, with a schedule's value in it.
        shared = isinstance(held, torch.Tensor) and any(self.field.held(g) is held for g in self._groups)
        if not shared:
            self.field.write(defaults, share_of(1.0, agreed, self.kind))


class OverriddenParam(BoundParam):
    """A bound key that is written again after each step or load of a scheduler, so the schedule has no effect."""

    def __init__(
        self,
        optimizer: Optimizer,
        field: Field,
        name: str,
        *,
        kind: ValueKind,
        default: float,
        ratios: Sequence[float],
        roots: Sequence[LRScheduler],
    ) -> None:
        super().__init__(optimizer, field, name, kind=kind, default=default, ratios=ratios)
        self._roots = tuple(roots)

    def before_step(self) -> None:
        """Checks for drift before the schedulers overwrite it."""
        self.check_drift()

    def after_step(self) -> None:
        """Overwrites what the schedulers wrote."""
        self._write()

    def reload_schedule(self) -> None:
        """Overwrites the lr of a loaded scheduler."""
        self._write()

    def _write(self) -> None:
        super()._write()
        if self.field.key == "lr":
            publish_lrs(self._roots, [self.field.held(group) for group in self._groups])


def checked_ratio(field: Field, value: float, default: float) -> float:
    """`value` divided by `default`. Raises BindError if only the default is zero."""
    ratio = ratio_of(value, default)
    if ratio is None:
        raise BindError(
            f"a group has {field}={value:g} but the optimizer's default is 0, so there is no ratio to keep: "
            f"construct the optimizer with the {field} that the agreed value stands for"
        )
    return ratio


class ScheduledParam(BoundParam):
    """Keeps `lr = point of the schedule x ratio x agreed`. The point is a group's lr divided by its `initial_lr`.

    Both numbers are in the group, so a checkpoint has the point, whatever was agreed when it was made. At an agreed
    zero both are zero. The schedule then continues from the last nonzero value: between two steps, the scheduler holds
    its points.
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
        """`units`: for each group, the agreed value that its current value corresponds to, usually the default."""
        super().__init__(optimizer, field, name, kind=ValueKind.REAL, default=default, ratios=ratios)
        self._roots = tuple(roots)
        self._leaves = [Leaf(scheduler, units, ratios) for scheduler in leaves_of(roots)]
        self._awaits_points = False

    def apply(self, agreed: Number) -> None:
        """Scales the whole curve to `agreed`. At zero, holds zero until another value is agreed."""
        if self.agreed is None:
            for leaf in self._leaves:
                leaf.adopt(self._anchor)
        super().apply(agreed)
        self._forget_points()

    def reload(self) -> float | None:
        """Scales the point of the schedule at which the optimizer was saved. Returns the same as the base class."""
        zeros = [group.get("initial_lr") for group, _ in self._shares() if "initial_lr" in group]
        self._awaits_points = self._points is None and any(number_in(base) == 0 for base in zeros)
        stale = super().reload()
        self._forget_points()
        return stale

    def reload_schedule(self) -> None:
        """Scales the loaded schedule, which keeps the position at which it was saved."""
        if self._awaits_points and self._points is not None:
            # The optimizer was loaded first, saved at an agreed zero: only now is its point of the schedule known.
            for group, _ in self._shares():
                group["initial_lr"] = fresh_like(group.get("initial_lr"), 0.0)
        self._write()

    def before_step(self) -> None:
        """Gives the schedulers the lr that they computed last, if the groups hold an agreed zero."""
        self.check_drift()  # the schedulers may compute the next lr from what other code wrote
        if self.agreed == 0 and self._points is not None:
            for (group, target), point in zip(self._shares(), self._points, strict=False):
                self.field.write(group, point * target)

    def after_step(self) -> None:
        """Stores what the schedulers computed and holds zero again, while zero is agreed."""
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
        """Each group with its base: its share of the last nonzero agreed value."""
        return [(group, ratio * self._anchor) for group, ratio in zip(self._groups, self.ratios, strict=False)]

    def _write(self) -> None:
        # Reads all groups before writing one: they may share a tensor.
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
