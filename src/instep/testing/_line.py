"""The connections of a link and their current faults. Runs in the proxy's thread."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

from instep.testing._faults import QUIET_S, Faults, Loss
from instep.testing._flow import Direction
from instep.testing._pair import Pair, Side

_MOST_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counts of a link. `refused`: connections that were reset as soon as they were made."""

    accepted: int = 0
    refused: int = 0
    open: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_lost: int = 0
    replies_lost: int = 0


class Line:
    """Creates a Pair for each connection, and decides for all of them what passes."""

    def __init__(self, name: str, target: tuple[str, int]) -> None:
        self.name = name
        self.faults = Faults()
        self._target = target
        self._pairs: set[Pair] = set()
        self._counts = LinkStatistics()
        self._quiet: asyncio.TimerHandle | None = None
        # Seeded by the name: with the same traffic, a link has the same jitter in each run.
        self._chance = random.Random(name)

    @property
    def statistics(self) -> LinkStatistics:
        return replace(self._counts, open=len(self._pairs))

    def serve(self, client: Side) -> None:
        """Takes over a client's connection; at most 1000 at a time."""
        if self.faults.cut or len(self._pairs) >= _MOST_CONNECTIONS:
            self._count(refused=1)
            client.reset()
            return
        self._count(accepted=1)
        pair = Pair(self, client, self._target)
        self._pairs.add(pair)
        pair.pump()

    # -- faults ----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        self.faults.cut = True
        self.reset_all()

    def reset_all(self) -> None:
        for pair in list(self._pairs):
            pair.reset()

    def hold(self, ways: tuple[Direction, ...]) -> None:
        self.faults.held.update(ways)
        self._pump_all()

    def delay(self, delay_s: float, jitter_s: float, ways: tuple[Direction, ...]) -> None:
        self.faults.delays.update(dict.fromkeys(ways, (delay_s, jitter_s)))

    def lose(self, loss: Loss) -> None:
        self._forget_loss()
        self.faults.loss = loss

    def heal(self) -> None:
        self._forget_loss()
        self.faults = Faults()
        self._pump_all()

    # -- called by pairs --------------------------------------------------------------------------------------

    def is_held(self, way: Direction) -> bool:
        return way in self.faults.held

    def arrived(self, pair: Pair, way: Direction, data: bytes) -> tuple[bytes, float]:
        """The data that passes, and its delay in seconds."""
        passed, loss = data, self.faults.loss
        if loss is not None and way == "up":
            loss.sent(pair, data)
        elif loss is not None:
            passed = loss.answered(pair, data)
            if len(passed) < len(data):
                self._reset_when_quiet(pair, loss)
        if way == "up":
            self._count(bytes_up=len(passed))
        else:
            self._count(bytes_down=len(passed), bytes_lost=len(data) - len(passed))
        return passed, self.faults.delay_s(way, self._chance)

    def ended(self, pair: Pair) -> None:
        self._pairs.discard(pair)
        if self.faults.loss is not None:
            self.faults.loss.ended(pair)

    # -- inside ----------------------------------------------------------------------------------------------

    def _pump_all(self) -> None:
        for pair in list(self._pairs):
            pair.pump()

    def _reset_when_quiet(self, pair: Pair, loss: Loss) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._lost, pair, loss)

    def _lost(self, pair: Pair, loss: Loss) -> None:
        self._quiet = None
        if self.faults.loss is loss:
            self.faults.loss = None
        self._count(replies_lost=1)
        pair.reset()

    def _forget_loss(self) -> None:
        """Ends a loss in progress. Resets its connection, because its stream has a gap."""
        loss, self.faults.loss = self.faults.loss, None
        if loss is not None and loss.lost_bytes and isinstance(loss.victim, Pair):
            if self._quiet is not None:
                self._quiet.cancel()
            self._lost(loss.victim, loss)

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + n for name, n in more.items()})
