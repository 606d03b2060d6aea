"""Whether the agent is alive, from its beat."""

from __future__ import annotations

from instep.worker.agent_connection import LOOKS, SILENCE_S, LivenessDetector


def test_a_moving_beat_is_alive_even_after_a_long_time_without_checks() -> None:
    pulse = LivenessDetector()
    assert not any(pulse.is_stopped(beat=now, now=now) for now in (0.0, 1.0, 100.0, 1e6))


def test_the_same_beat_over_a_long_time_and_many_checks_is_stopped() -> None:
    pulse = LivenessDetector()
    looks = [pulse.is_stopped(beat=5.0, now=float(now)) for now in range(30)]
    assert True in looks
    assert looks.index(True) >= max(LOOKS, SILENCE_S)


def test_many_checks_in_a_short_time_are_not_enough() -> None:
    pulse = LivenessDetector()
    assert not any(pulse.is_stopped(beat=5.0, now=look / 1000) for look in range(1000))


def test_one_check_after_a_long_sleep_is_not_enough() -> None:
    pulse = LivenessDetector()
    pulse.is_stopped(beat=5.0, now=0.0)
    assert not pulse.is_stopped(beat=5.0, now=1e6)
    assert not pulse.is_stopped(beat=1e6, now=1e6 + 0.1)


def test_quick_checks_before_a_long_sleep_do_not_replace_those_after_it() -> None:
    """A waiting rank checks four times between two beats; when all processes wake up, the agent may be the last."""
    pulse = LivenessDetector()
    assert not any(pulse.is_stopped(beat=5.0, now=look / 4) for look in range(4))
    assert not any(pulse.is_stopped(beat=5.0, now=100.0 + look / 4) for look in range(3))
    assert not pulse.is_stopped(beat=100.8, now=101.0)


def test_the_next_agent_gets_its_own_time() -> None:
    pulse = LivenessDetector()
    assert [pulse.is_stopped(beat=5.0, now=now) for now in (0.0, 20.0, 40.0, 60.0)] == [False, False, False, True]
    assert not pulse.is_stopped(beat=5.0, now=61.0)
    assert not pulse.is_stopped(beat=5.0, now=62.0)
