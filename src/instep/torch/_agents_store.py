"""The store in which torchrun's agents tell each other their roles, after they have met and before workers start."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from torch.distributed import (  # type: ignore[attr-defined]  # re-exported, but not by name
    DistError,
    DistStoreError,
    PrefixStore,
    Store,
)

from instep.torch._bounded import bounded

log = logging.getLogger("instep")

PREFIX: Final = "instep/agents"
ROLES: Final = "torchelastic/role_info/"
RANKS: Final = "torchelastic/assigned_ranks/"
FINISHED: Final = "torchelastic/agent/terminal_state/num_members"
"""torchrun's own names, not ours. Under others this would be a plain store: safe, and an agent ends as before."""
LOOK_S: Final = 0.01
WAIT_LOOK_S: Final = 0.1
ANSWER_S: Final = 1.0


class AgentsStore(PrefixStore):
    """Promise: when a node dies after the meeting and before all agents know their workers' ranks, no other agent ends
    by that: it gets ranks as if all nodes were like its own, and `is_lost` tells that the round has to be left at once.

    Limit: its workers are started for a moment. Their world does not become complete, for a rank of it is dead.
    `timeout_s` is how long a node may take; one frozen for longer is taken for dead.
    """

    def __init__(self, store: Store, rank: int, world_size: int, *, timeout_s: float) -> None:
        super().__init__(PREFIX, store)
        self._rank = rank
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._role = b"{}"
        self.is_lost = False

    def set(self, key: str, value: Any) -> None:
        if key.startswith(ROLES):
            self._role = value
            self._tried(lambda: super(AgentsStore, self).set(key, value))
        else:
            super().set(key, value)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if not keys or not keys[0].startswith(ROLES):
            return super().multi_get(keys)
        found: list[bytes] | None = self._awaited(keys, lambda: super(AgentsStore, self).multi_get(keys))
        return found if found is not None else [self._role] * len(keys)

    def multi_set(self, keys: list[str], values: list[Any]) -> None:
        """Ranks that rest on a guess are kept back: no node that is only late is to make a world of them complete."""
        if not (self.is_lost and keys and keys[0].startswith(RANKS)):
            super().multi_set(keys, values)  # type: ignore[misc]  # missing in the stubs

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """torchrun waits in its exit barrier so, for minutes: signals are heard meanwhile, unlike in torch's own."""
        deadline = time.monotonic() + (timeout or self.timeout).total_seconds()  # type: ignore[attr-defined]  # missing in the stubs
        while not bounded(lambda: self.check(keys), self._timeout_s, "the agents' store"):
            if time.monotonic() > deadline:
                raise DistStoreError(f"{', '.join(keys)} did not come in time")
            time.sleep(WAIT_LOOK_S)

    def get(self, key: str) -> bytes:
        if not key.startswith(RANKS):
            return super().get(key)
        found: bytes | None = self._awaited([key], lambda: super(AgentsStore, self).get(key))
        return found if found is not None else self._guess()

    def add(self, key: str, amount: int) -> int:
        """The exit barrier begins with it."""
        number: int = bounded(lambda: super(AgentsStore, self).add(key, amount), self._timeout_s, "the agents' store")
        return number

    @property
    def is_ending(self) -> bool:
        """Whether the workers of some node have finished: it waits in the exit barrier and comes to no further round.
        False where the store does not answer in a second; it is of no use any more then."""
        try:
            return bool(bounded(lambda: self.check([FINISHED]), ANSWER_S, "the agents' store"))
        except DistError:
            return False

    def _awaited(self, keys: list[str], read: Callable[[], Any]) -> Any:
        """What `read` gives, once all keys are there; None when that is in vain."""
        deadline = time.monotonic() + self._timeout_s
        while not self.is_lost and not self._tried(lambda: self.check(keys)):
            if time.monotonic() > deadline:
                self._lose(f"{keys[-1]} has not come in {self._timeout_s:g} s")
            time.sleep(LOOK_S)
        return None if self.is_lost else self._tried(read)

    def _tried(self, act: Callable[[], Any]) -> Any:
        if self.is_lost:
            return None
        try:
            return bounded(act, self._timeout_s, "the agents' store")
        except DistError as error:
            self._lose(str(error))
            return None

    def _lose(self, why: str) -> None:
        self.is_lost = True
        log.warning("a node has died just before the workers' start: asking for the next round (%s)", why)

    def _guess(self) -> bytes:
        """As torchrun counts where all nodes have as many workers, of one role."""
        local = int(json.loads(self._role).get("local_world_size", 1))
        first, size = self._rank * local, self._world_size * local
        return json.dumps([first, size, first, size]).encode()
