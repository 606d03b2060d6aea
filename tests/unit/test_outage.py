"""A failure is logged once, and its end once."""

from __future__ import annotations

import logging

import pytest

from instep.errors import EtcdFull, EtcdUnavailable
from instep.outage import Outage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="instep")
    return caplog


def test_a_repeated_failure_is_logged_once_and_its_end_with_its_duration(
    said: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    outage = Outage("the lease cannot be had", clock=clock)
    for _ in range(30):
        outage.met(EtcdUnavailable("no answer"))
        clock.now += 1.5
    assert said.messages == ["the lease cannot be had: no answer"]
    assert outage.on
    outage.over()
    assert said.messages[1:] == ["the lease cannot be had: over after 45.0 s and 30 failures"]
    assert not outage.on


def test_a_failure_for_another_reason_is_logged_too(said: pytest.LogCaptureFixture) -> None:
    outage = Outage("work waits")
    for error in (EtcdUnavailable("no answer"), EtcdFull("a long sentence"), EtcdFull("a long sentence")):
        outage.met(error)
    assert said.messages == ["work waits: no answer", "work waits: etcd's database is full"]


def test_a_success_without_a_failure_is_not_logged(said: pytest.LogCaptureFixture) -> None:
    outage = Outage("work waits")
    outage.over()
    assert said.messages == []
    outage.met(EtcdUnavailable("again"))
    outage.over()
    outage.met(EtcdUnavailable("again"))
    assert [text for text in said.messages if text == "work waits: again"] == ["work waits: again"] * 2
