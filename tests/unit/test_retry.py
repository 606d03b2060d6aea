"""One way to retry: which errors, how long the pauses are, and what the log says."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from async_support import run
from instep.errors import (
    Compacted,
    EtcdDenied,
    EtcdError,
    EtcdFull,
    EtcdUnavailable,
    InstepError,
    LeaseLost,
    NameTaken,
    SettingsError,
)
from instep.recipes.retry import (
    FOLLOW,
    LEASE,
    NEXT_LEASE,
    PASSING,
    READ,
    REGISTER,
    SERVICE,
    UNAVAILABLE,
    WRITE,
    Retry,
    RetryPolicy,
    retry_until_done,
)

AWAY = EtcdUnavailable("no answer")
FULL = EtcdFull("there is no space")
DENIED = EtcdDenied("a permission is missing")
INVALID = SettingsError("the request is too large")
LOST = LeaseLost("the lease is gone", lease_id=7)


class World:
    """A clock that moves only while something sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses: list[float] = []

    async def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now_s += pause_s

    def retry(self, policy: RetryPolicy, *, timeout_s: float | None = None, jitter: float = 0.0) -> Retry:
        return Retry(
            policy,
            "the work waits",
            timeout_s=timeout_s,
            clock=lambda: self.now_s,
            sleep=self.sleep,
            uniform=lambda low, high: low + jitter * (high - low),
        )


def failing(*errors: InstepError, result: Any = "done") -> Callable[[], Awaitable[Any]]:
    left = list(errors)

    async def attempt() -> Any:
        if left:
            raise left.pop(0)
        return result

    return attempt


@pytest.mark.parametrize(
    ("policy", "retried", "raised"),
    [
        (PASSING, (AWAY, FULL, LOST, Compacted("history is gone", compact_revision=3)), (DENIED, INVALID)),
        (UNAVAILABLE, (AWAY,), (FULL, LOST, DENIED, INVALID)),
        (READ, (AWAY, Compacted("history is gone", compact_revision=3)), (FULL, DENIED)),
        (REGISTER, (AWAY, FULL), (LOST, DENIED, NameTaken("it is taken", name="a"))),
        (NEXT_LEASE, (LOST, FULL), (AWAY, DENIED)),
        (WRITE, (AWAY, FULL, LOST, DENIED, EtcdError("unknown")), (INVALID,)),
        (SERVICE, (AWAY, FULL, LOST, DENIED, INVALID), ()),
        (FOLLOW, (AWAY, DENIED, INVALID), ()),
        (LEASE, (AWAY, DENIED, INVALID), ()),
    ],
)
def test_a_policy_names_the_errors_that_are_retried(
    policy: RetryPolicy, retried: tuple[InstepError, ...], raised: tuple[InstepError, ...]
) -> None:
    for error in retried:
        assert run(World().retry(policy).run(failing(error))) == "done"
    for error in raised:
        world = World()
        with pytest.raises(type(error)):
            run(world.retry(policy).run(failing(error)))
        assert world.pauses == []


def test_pauses_double_up_to_the_longest_and_start_over_after_a_success() -> None:
    world = World()
    retry = world.retry(WRITE)
    for _ in range(2):
        run(retry.run(failing(*[AWAY] * 7)))
        assert world.pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
        world.pauses.clear()


@pytest.mark.parametrize(("error", "pause_s"), [(AWAY, 0.2), (FULL, 1.0), (DENIED, 5.0), (INVALID, 5.0), (LOST, 0.2)])
def test_an_error_that_people_must_fix_is_retried_slowly(error: InstepError, pause_s: float) -> None:
    world = World()
    run(world.retry(SERVICE).run(failing(error, error)))
    assert world.pauses == [pause_s, pause_s]


def test_a_pause_is_shortened_at_random() -> None:
    world = World()
    run(world.retry(SERVICE, jitter=1.0).run(failing(AWAY)))
    assert world.pauses == [pytest.approx(0.15)]


def test_a_retry_that_would_pass_its_time_out_raises_the_error() -> None:
    world = World()
    with pytest.raises(EtcdUnavailable, match="no answer"):
        run(world.retry(UNAVAILABLE, timeout_s=1.0).run(failing(*[AWAY] * 100)))
    assert sum(world.pauses) < 1.0
    assert len(world.pauses) == 4


def test_the_log_has_one_line_when_it_begins_and_one_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="instep")
    run(World().retry(SERVICE).run(failing(*[AWAY] * 50)))
    assert caplog.messages == [
        "the work waits: no answer",
        "the work waits: over after 10.0 s and 50 failures",
    ]


def test_a_step_is_repeated_until_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    results = [False, False, True]

    async def step() -> bool:
        return results.pop(0)

    run(retry_until_done(step, "the key"))
    assert results == []
    run(retry_until_done(failing(DENIED), "the key"))
    assert caplog.messages == ["the key cannot be removed: a permission is missing"]
