"""What the tests of faults share: limits, and the versions of etcd to try."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from instep.testing import etcd_versions, find_etcd

T = TypeVar("T")

LIMIT_S = 120.0
# What a call may take beyond its time-out: a busy machine's scheduling, nothing of the client's.
SLACK_S = 1.0

# Another version than the newest at hand: INSTEP_TEST_ETCD_VERSION=3.4 make test
VERSION = find_etcd(os.environ.get("INSTEP_TEST_ETCD_VERSION")).version
VERSIONS = [binary.version for binary in etcd_versions()]
# That one always, the others of this machine when long tests are asked for.
EACH_VERSION = [
    version if version == VERSION else pytest.param(version, marks=pytest.mark.long) for version in VERSIONS
]


def run(main: Coroutine[Any, Any, T], limit_s: float = LIMIT_S) -> T:
    """Run one test's coroutine with a limit, and check that it leaves no task behind."""

    async def limited() -> T:
        async with asyncio.timeout(limit_s):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(limited())


async def until(condition: Callable[[], bool | Awaitable[bool]], limit_s: float = 30.0) -> float:
    """Wait until the condition holds; returns how long it took in seconds."""
    began = time.monotonic()
    async with asyncio.timeout(limit_s):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return time.monotonic() - began
            await asyncio.sleep(0.01)
