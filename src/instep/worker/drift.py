"""Checks from time to time whether the training uses the agreed values, and reports it to the log and operators."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

log = logging.getLogger("instep")

Check = Callable[[], Mapping[str, str]]
"""Gives, by hyperparameter, how what is used differs from what was agreed. Changes nothing."""


class DriftWatch:
    """Runs the checks of all bindings, at the boundaries that read the socket anyway: about once a second."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._checks: list[Check] = []
        self._logged: set[str] = set()
        self.names: tuple[str, ...] = ()
        """Hyperparameters that were not used as agreed when this was looked at last."""

    def __repr__(self) -> str:
        return f"DriftWatch({len(self._checks)} bindings, drift of {', '.join(self.names) or 'nothing'})"

    def __bool__(self) -> bool:
        return bool(self._checks)

    def add(self, check: Check) -> Callable[[], None]:
        """Runs `check` at each look, until the returned function is called."""
        self._checks.append(check)
        return lambda: self._checks.remove(check)

    def look(self) -> tuple[str, ...]:
        """Runs all checks; logs each hyperparameter the first time that it drifts."""
        found: dict[str, str] = {}
        for check in self._checks:
            found.update(check())
        for name, how in found.items():
            if name not in self._logged:
                self._logged.add(name)
                log.warning("the optimizer of rank %d does not hold the agreed %s: %s", self._rank, name, how)
        self.names = tuple(sorted(found))
        return self.names
