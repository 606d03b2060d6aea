"""Whether a fresh view can start with the desired values, as far as only the training script knows. Pure.

A validator written in Python runs in the workers alone. So before a fresh view is formed, one worker that will be in it
tries its values; what it cannot take is rejected, and the view is decided anew without that. All ranks still start with
the one snapshot that the view holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from instep.coordination.records import Rejected
from instep.scalar import Scalar

Refusals: TypeAlias = Mapping[int, Mapping[str, str]]
"""By revision: what each name was refused for."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A desired value that the view would start with; `text` is what stands in etcd."""

    name: str
    value: Scalar
    text: str
    revision: int


@dataclass(frozen=True, slots=True)
class DryRun:
    """`values` is what the view would start with; `base` the same without any desired value."""

    values: Mapping[str, Scalar]
    base: Mapping[str, Scalar]
    taken: tuple[Taken, ...]

    def groups(self) -> list[tuple[int, dict[str, Scalar]]]:
        """What one revision wrote is tried as one, the oldest first."""
        found: dict[int, dict[str, Scalar]] = {}
        for item in sorted(self.taken, key=lambda item: (item.revision, item.name)):
            found.setdefault(item.revision, {})[item.name] = item.value
        return list(found.items())

    def rejections(self, refused: Refusals) -> tuple[Rejected, ...]:
        """Records for all names of the refused revisions; a name without a reason of its own came with one that has."""
        return tuple(_rejection(item, refused[item.revision]) for item in self.taken if item.revision in refused)


def decode_refusals(items: Iterable[tuple[int, Mapping[str, str]]]) -> Refusals:
    """From a worker's message. Raises ValueError or TypeError for what is none."""
    return {int(revision): {str(name): str(reason) for name, reason in dict(why).items()} for revision, why in items}


def _rejection(item: Taken, reasons: Mapping[str, str]) -> Rejected:
    blame = ", ".join(reasons)
    reason = reasons.get(item.name, f"it was written together with {blame}, which was rejected")
    return Rejected(name=item.name, value=item.text[:200], revision=item.revision, reason=reason[:1000], by="worker")
