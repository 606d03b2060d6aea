"""The decisions of a proxy, without a network: how long data waits, and which reply is lost."""

from __future__ import annotations

import random

from instep.testing._faults import Faults, Loss
from instep.testing._flow import LIMIT_BYTES, End, Flow


def test_queued_data_passes_when_it_is_due() -> None:
    flow = Flow()
    flow.put(b"a", due=2.0)
    assert flow.take(1.9) is None
    assert flow.next_due == 2.0
    assert flow.take(2.0) == b"a"
    assert flow.next_due is None


def test_no_data_overtakes_earlier_data() -> None:
    flow = Flow()
    flow.put(b"slow", due=5.0)
    flow.put(b"quick", due=1.0)
    flow.put(End.CLOSED, due=0.0)
    assert flow.take(4.9) is None
    assert [flow.take(5.0) for _ in range(4)] == [b"slow", b"quick", End.CLOSED, None]


def test_a_flow_is_full_until_enough_has_passed() -> None:
    flow = Flow()
    flow.put(b"x" * LIMIT_BYTES, due=0.0)
    flow.put(End.RESET, due=0.0)
    assert flow.full
    flow.take(0.0)
    assert not flow.full


def test_a_delay_lies_between_its_least_and_its_jitter() -> None:
    faults, chance = Faults(delays={"up": (1.0, 0.5)}), random.Random(1)
    delays = [faults.delay_s("up", chance) for _ in range(100)]
    assert 1.0 <= min(delays) < max(delays) <= 1.5
    assert faults.delay_s("down", chance) == 0.0


def test_only_the_connection_that_sent_the_request_loses_its_reply() -> None:
    loss = Loss(b"key")
    loss.sent("a", b"the ke")
    loss.sent("b", b"y")
    assert loss.answered("a", b"reply") == b"reply"
    loss.sent("a", b"y")
    loss.sent("b", b"another key")
    assert (loss.answered("a", b"reply"), loss.answered("b", b"reply")) == (b"", b"reply")
    assert loss.lost_bytes == 5


def test_a_victim_that_ends_before_anything_was_lost_is_replaced() -> None:
    loss = Loss(b"key", after_bytes=2)
    loss.sent("a", b"key")
    assert loss.answered("a", b"ab") == b"ab"
    loss.ended("a")
    loss.sent("b", b"key")
    assert loss.answered("b", b"ab") == b""
    loss.ended("b")
    assert loss.victim == "b"
