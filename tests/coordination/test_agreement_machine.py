"""Ranks agree on every step despite crashes and delays: the production code of agents and workers on a model."""

from __future__ import annotations

import pytest
from agreement_machine import (
    HISTORY_PROFILE,
    PROFILE,
    DriftingHistoryMachine,
    DriftingMachine,
    LockstepHistoryMachine,
    LockstepMachine,
)
from hypothesis.stateful import run_state_machine_as_test


def test_ranks_in_lockstep_agree_on_every_step_despite_crashes_and_delays() -> None:
    run_state_machine_as_test(LockstepMachine, settings=PROFILE)


def test_ranks_that_drift_apart_agree_on_every_step_despite_delays() -> None:
    run_state_machine_as_test(DriftingMachine, settings=PROFILE)


@pytest.mark.parametrize("machine", [LockstepHistoryMachine, DriftingHistoryMachine])
def test_ranks_agree_on_every_step_when_the_history_of_etcd_goes_back(
    machine: type[LockstepHistoryMachine | DriftingHistoryMachine],
) -> None:
    run_state_machine_as_test(machine, settings=HISTORY_PROFILE)
