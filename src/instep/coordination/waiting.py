"""Which errors a recipe rides out, and cleanup in spite of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from instep.errors import Compacted, EtcdFull, EtcdUnavailable, InstepError, LeaseLost

if TYPE_CHECKING:
    from instep.coordination.session import Session

log = logging.getLogger("instep")

RETRY_S: Final = 0.2
GIVE_UP_S: Final = 1.0
"""Who stops waiting tidies up for so long at most; the session carries on with what is left."""

PASSING: Final[tuple[type[InstepError], ...]] = (EtcdUnavailable, EtcdFull, Compacted, LeaseLost)
"""What a recipe rides out within its time-out: none of it says that the same request cannot succeed later."""


def because(trouble: InstepError | None) -> str:
    """What the sentence of a time-out goes on with: the error that was ridden out last, if it was not over by then."""
    return "" if trouble is None else f" Trouble with etcd until then: {str(trouble).rstrip('.')}."


async def retry_until_done(step: Callable[[], Awaitable[bool]], what: str) -> None:
    """Takes the step again until it returns True, over outages. Another error is logged, and ends it: no repetition
    cures that."""
    while True:
        try:
            if await step():
                return
        except PASSING:
            await asyncio.sleep(RETRY_S)
        except InstepError as error:
            log.error("%s cannot be removed: %s", what, error)
            return


async def tidied(session: Session, step: Callable[[], Awaitable[bool]], what: str) -> bool:
    """Insists for about a second; then the session carries on with it. Whether it was done in that time."""
    removing = session.background_task(retry_until_done(step, what))
    if removing is None:
        return False
    done, _ = await asyncio.wait([removing], timeout=GIVE_UP_S)
    return bool(done)
