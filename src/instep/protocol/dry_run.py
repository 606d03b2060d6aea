"""Whether a fresh view can start with the desired values, as far as only the training script knows. Pure.

Validators written in Python run in workers only. Before a fresh view is formed, one of its workers therefore validates
the values. What it refuses is rejected, and the view is decided again without it. All ranks start with the one
snapshot that the view holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from instep.protocol.records import Rejected
from instep.scalar import Scalar

Refusals: TypeAlias = Mapping[int, Mapping[str, str]]
"""By revision: the reason for each refused name."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A desired value that the view would start with; `text` is the text in etcd."""

    name: str
    value: Scalar
    text: str
    revision: int


@dataclass(frozen=True, slots=True)
class DryRun:
    """`values` are those that the view would start with; `base` are the values without any desired one."""

    values: Mapping[str, Scalar]
    base: Mapping[str, Scalar]
    taken: tuple[Taken, ...]

    def groups(self) -> tuple[tuple[int, dict[str, Scalar]], ...]:
        """The values of each revision, which are validated together, the oldest first."""
        found: dict[int, dict[str, Scalar]] = {}
        for item in sorted(self.taken, key=lambda item: (item.revision, item.name)):
            found.setdefault(item.revision, {})[item.name] = item.value
        return tuple(found.items())

    def rejections(self, refused: Refusals) -> tuple[Rejected, ...]:
        """Rejections of all names of the refused revisions. A name without a reason came with one that has."""
        return tuple(_rejection(item, refused[item.revision]) for item in self.taken if item.revision in refused)


def _rejection(item: Taken, reasons: Mapping[str, str]) -> Rejected:
    blame = ", ".join(reasons)
    reason = reasons.get(item.name, f"it was written together with {blame}, which was rejected")
    return Rejected(name=item.name, value=item.text[:200], revision=item.revision, reason=reason[:1000], by="worker")
