"""The promise of step agreement holds for the agents' and workers' own code, whatever dies or is delayed."""

from __future__ import annotations

from agreement_machine import PROFILE, DriftingMachine, LockstepMachine
from hypothesis.stateful import run_state_machine_as_test


def test_ranks_in_lockstep_agree_on_every_step_whatever_dies_or_is_delayed() -> None:
    run_state_machine_as_test(LockstepMachine, settings=PROFILE)


def test_ranks_that_drift_apart_agree_on_every_step_whatever_is_delayed() -> None:
    run_state_machine_as_test(DriftingMachine, settings=PROFILE)
