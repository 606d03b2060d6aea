"""What a binding needs of a run, and how it reads an agreed value from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from instep.worker.run import Run

_ABSENT = object()


class SteeredRun(Protocol):
    """The part of a `Run` that a binding uses; anything of this shape can be bound."""

    @property
    def config(self) -> Any:
        """The agreed values: an object with one attribute a name, or a mapping."""

    def on_change(self, fn: Callable[[Any, Any], object], /) -> object:
        """Call `fn(old, new)` after each agreed change, in the training thread, between two steps."""


def watch_drift(run: SteeredRun, check: Callable[[], Mapping[str, str]]) -> Callable[[], None]:
    """Has the run ask `check` now and then, until the returned function is called. Only a `Run` does."""
    if isinstance(run, Run):
        return run._drift.add(check)
    return lambda: None


def is_agreed(config: object, name: str) -> bool:
    """Whether `config` has a hyperparameter called `name`."""
    return agreed_in(config, name) is not _ABSENT


def agreed_in(config: object, name: str) -> object:
    """The value of `name` in `config`; an object that is no number when it is not there."""
    if isinstance(config, Mapping):
        return config.get(name, _ABSENT)
    return getattr(config, name, _ABSENT)
