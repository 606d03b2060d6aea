"""Whether the ranks of a view have run a step together. Pure: steps in, yes or no out."""

from __future__ import annotations


class ProgressDetector:
    """As one node sees it: a rank that begins a step has ended the one before, and nobody ends one alone.

    Limit: where ranks do not wait for each other in a step, one of them goes on for all. Who begins to look late, as a
    new leader does, has to see two more steps begin.
    """

    def __init__(self) -> None:
        self._view = 0
        self._begun: int | None = None
        self._progressed = False

    def __repr__(self) -> str:
        return f"ProgressDetector(view {self._view}, from step {self._begun}, progressed={self._progressed})"

    def progressed(self, view: int, step: int | None) -> bool:
        """`step` is the highest that any rank of the node has begun, None before the first."""
        if view != self._view:
            self._view, self._begun, self._progressed = view, step, False
        elif step is not None and (self._begun is None or step < self._begun):
            self._begun = step
        # The step that ran when the view was formed may have been ended by those before it, and the next one begun.
        self._progressed = self._progressed or (
            step is not None and self._begun is not None and step >= self._begun + 2
        )
        return self._progressed
