"""Waiting for whichever comes first, and which errors may pass."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from instep.coordination.mirror import cancelled
from instep.errors import Compacted, EtcdFull, EtcdUnavailable, InstepError, LeaseLost

RETRY_S: Final = 0.2
GIVE_UP_S: Final = 1.0
"""Who stops waiting tidies up for so long at most; the session carries on with what is left."""

PASSING: Final[tuple[type[InstepError], ...]] = (EtcdUnavailable, EtcdFull, Compacted, LeaseLost)
"""What a recipe rides out within its time-out: none of it says that the same request cannot succeed later."""


async def first_of(*waits: Coroutine[Any, Any, None]) -> None:
    """Returns when one of them has returned, or raises what it raised. The others are cancelled and have ended."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancelled(*tasks)
