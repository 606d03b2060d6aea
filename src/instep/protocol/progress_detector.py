"""Whether the ranks of a view have completed a step together. Pure."""

from __future__ import annotations


class ProgressDetector:
    """Observes one node: a rank that begins a step has completed the one before, and no rank completes a step alone.

    Limit: if ranks do not wait for each other in a step, one rank counts for all. A detector that starts late, such as
    a new leader's, has to see two more steps begin.
    """

    def __init__(self) -> None:
        self._view = 0
        self._begun: int | None = None
        self._progressed = False

    def __repr__(self) -> str:
        return f"ProgressDetector(view {self._view}, from step {self._begun}, progressed={self._progressed})"

    def progressed(self, view: int, step: int | None) -> bool:
        """Whether the view has progressed. `step` is the highest that a rank of the node has begun, None before the
        first."""
        if view != self._view:
            self._view, self._begun, self._progressed = view, step, False
        elif step is not None and (self._begun is None or step < self._begun):
            self._begun = step
        # The former workers may have completed the step that ran when the view was formed, and begun the next one.
        self._progressed = self._progressed or (
            step is not None and self._begun is not None and step >= self._begun + 2
        )
        return self._progressed
