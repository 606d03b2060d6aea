"""What this worker does beside training on, by step: agreed like the values, and the same on every rank. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from instep.worker.gate import NEVER


@dataclass(frozen=True, slots=True)
class Course:
    """`records.Course` as the worker holds it: a worker imports no more than it must."""

    paused_at: int | None = None
    save_at: int | None = None
    ends_at: int | None = None
    reason: str | None = None
    node: str | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Course:
        return cls(*(document.get(name) for name in ("paused_at", "save_at", "ends_at", "reason", "node")))

    def from_step(self, gate: int, step: int) -> Course:
        """As it holds for ranks that stood before `step`, beyond the plan's gate: those of a run that is paused from
        its start on stand where they went on from."""
        if step <= gate:
            return self
        moved = {name: at + step - gate for name in ("save_at", "ends_at") if (at := getattr(self, name)) is not None}
        return replace(self, **moved)

    @property
    def next_stop(self) -> int:
        """The first step before which there is something to do."""
        return min((at for at in (self.paused_at, self.ends_at) if at is not None), default=NEVER)

    def is_paused(self, step: int) -> bool:
        """Whether `step` waits for the run to be resumed."""
        return self.paused_at is not None and step >= self.paused_at

    def is_over(self, step: int) -> bool:
        """Whether `step` is not run any more."""
        return self.ends_at is not None and step >= self.ends_at
