"""The promise of step agreement holds for the agents' and workers' own code, whatever dies or is delayed."""

from __future__ import annotations

import pytest
from agreement_machine import (
    DEFAULT,
    PROFILE,
    DriftingHistoryMachine,
    DriftingMachine,
    LockstepHistoryMachine,
    LockstepMachine,
)
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

EFFORT = pytest.mark.parametrize(
    "effort",
    [PROFILE, pytest.param(settings(DEFAULT, max_examples=1000), marks=pytest.mark.long)],
    ids=["usual", "long"],
)


@EFFORT
def test_ranks_in_lockstep_agree_on_every_step_whatever_dies_or_is_delayed(effort: settings) -> None:
    run_state_machine_as_test(LockstepMachine, settings=effort)


@EFFORT
def test_ranks_that_drift_apart_agree_on_every_step_whatever_is_delayed(effort: settings) -> None:
    run_state_machine_as_test(DriftingMachine, settings=effort)


@pytest.mark.parametrize(
    "effort",
    [settings(DEFAULT, max_examples=30), pytest.param(settings(DEFAULT, max_examples=1000), marks=pytest.mark.long)],
    ids=["usual", "long"],
)
@pytest.mark.parametrize("machine", [LockstepHistoryMachine, DriftingHistoryMachine])
def test_ranks_agree_on_every_step_however_often_the_history_of_etcd_goes_back(
    machine: type[LockstepHistoryMachine | DriftingHistoryMachine], effort: settings
) -> None:
    run_state_machine_as_test(machine, settings=effort)
