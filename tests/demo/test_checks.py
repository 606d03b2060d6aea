"""The demo's verdict follows from what the ranks wrote down, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from demo_evidence import KILLED_AT, LAST, alone, evidence, formed, gone_on, killed, receipt

from instep.demo._checks import Evidence, Pause, RefusedValue, Steered, Stop, Takeover, check
from instep.demo._records import RankRecord, records_of
from instep.errors import InstepError
from instep.rendezvous.records import Round

SAME_PARAMETERS = "all 2 ranks hold bit-identical parameters"
SAME_VALUES = "all ranks used equal values at every step"
LR = "lr 3e-3 → 1e-3 at one step"
SAVED = "rank 0 dies saving step 50: another saves it"
NOTHING_LOST = "torchrun restarts and no step is lost"
PAUSED = "paused ranks wait before one step, then continue"
STOPPED = "SIGTERM on rank 1: all save and exit"


def failed(found: Evidence) -> list[str]:
    return [item.claim for item in check(found) if not item.held]


def with_records(*records: RankRecord) -> Evidence:
    return replace(evidence(), records=records)


def test_all_claims_hold_when_the_ranks_agree() -> None:
    assert failed(evidence()) == []


def test_a_rank_with_other_parameters_fails_the_demo() -> None:
    assert failed(with_records(killed(0), killed(1), gone_on(0), gone_on(1, sha256="ab"))) == [SAME_PARAMETERS]


def test_a_rank_that_changed_one_step_later_fails_the_demo() -> None:
    doctored = with_records(killed(0), killed(1, changed_at=41), gone_on(0), gone_on(1))
    assert failed(doctored) == [SAME_VALUES, LR]


def test_a_receipt_that_names_another_step_than_the_ranks_fails_the_demo() -> None:
    assert failed(replace(evidence(), steered=(Steered("instep set", receipt(step=39)),))) == [LR]


def test_a_change_that_one_rank_did_not_apply_fails_the_demo() -> None:
    assert failed(replace(evidence(), steered=(Steered("instep set", receipt(applied=1)),))) == [LR]


def test_a_rank_without_notes_fails_every_claim_about_the_ranks() -> None:
    assert len(failed(with_records(killed(0), killed(1), gone_on(0)))) == 6
    assert failed(with_records(killed(0), killed(1))) != []


def test_a_rank_that_ran_fewer_steps_fails_the_demo() -> None:
    assert failed(with_records(killed(0), killed(1), gone_on(0), gone_on(1, last=LAST - 1))) == [SAME_VALUES, STOPPED]


def test_steps_that_nobody_ran_fail_the_demo() -> None:
    doctored = with_records(killed(0), killed(1), gone_on(0, start=60), gone_on(1, start=60))
    assert failed(doctored) == [SAME_VALUES, NOTHING_LOST]


def test_a_bad_value_that_reached_etcd_fails_the_demo() -> None:
    doctored = replace(evidence(), refusal=RefusedValue("lr=-1", "it was not refused", "0.001", "-1", written=True))
    assert failed(doctored) == ["lr=-1 is refused before it is written"]


def test_a_saver_that_finished_before_it_was_killed_proves_nothing() -> None:
    assert failed(with_records(killed(0, finished=True), killed(1), gone_on(0), gone_on(1))) == [SAVED]
    assert failed(replace(evidence(), takeover=Takeover(KILLED_AT, 0, 1, 12.0, 0))) == [SAVED]


def test_ranks_that_restored_other_parameters_than_were_saved_fail_the_demo() -> None:
    assert failed(with_records(killed(0), killed(1), gone_on(0), gone_on(1, restored="s49"))) == [NOTHING_LOST]


@pytest.mark.parametrize("found", [None, formed(1, restarts=0), formed(2, restarts=0)])
def test_a_world_that_was_not_formed_anew_fails_the_demo(found: Round | None) -> None:
    assert failed(replace(evidence(), round=found)) == ["torchrun forms a new round over etcd v3"]


def test_a_step_that_was_paused_and_not_run_afterwards_fails_the_demo() -> None:
    assert failed(replace(evidence(), pause=Pause(step=LAST + 1, stood_s=1.5))) == [PAUSED]


@pytest.mark.parametrize("stop", [Stop(1, LAST - 1, 0, 0.4), Stop(1, LAST, 1, 0.4)])
def test_a_stop_without_the_last_step_saved_or_with_another_exit_code_fails_the_demo(stop: Stop) -> None:
    assert failed(replace(evidence(), stop=stop)) == [STOPPED]


@pytest.mark.parametrize("guilty", [gone_on(1, grpc=True), gone_on(1, thread="poller")])
def test_a_trainer_with_an_etcd_client_or_a_thread_fails_the_demo(guilty: RankRecord) -> None:
    assert failed(with_records(killed(0), killed(1), gone_on(0), guilty)) == ["trainers have no etcd client, no thread"]


def test_ranks_that_did_not_drift_without_instep_fail_the_demo() -> None:
    """The comparison is an experiment: it may come out otherwise, and then it says so."""
    same = (alone(0, sha256="bb", difference=0.0), alone(1, sha256="bb", difference=0.0))
    assert failed(replace(evidence(), baseline=same)) == ["without Instep the ranks drift apart"]


def test_ranks_that_differed_before_the_change_prove_nothing() -> None:
    other = (alone(0, sha256="bb", difference=0.0), alone(1, sha256="cc", difference=1e-3, before="other"))
    assert failed(replace(evidence(), baseline=other)) == ["without Instep the ranks drift apart"]


def test_notes_become_one_life_a_process() -> None:
    notes = [
        {"start": 0, "sha256": "s0"},
        {"step": 0, "used": {"lr": 0.1}},
        {"saved": None, "sha256": "x"},
        {"saved": 0, "sha256": "s1"},
        {"end": "s1", "stopped": None, "grpc": False, "threads": ["MainThread"]},
    ]
    (record,) = records_of(json.dumps({"rank": 3, "view": 2, "pid": 9, **note}) for note in notes)
    used, saved, threads = {0: {"lr": 0.1}}, {0: "s1"}, ("MainThread",)
    assert record == RankRecord(3, 2, 0, "s0", used, saved, "s1", None, grpc=False, threads=threads)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rank": 0, "view": 1, "step": 1, "used": 1}'])
def test_notes_that_cannot_be_read_are_an_error_and_no_pass(text: str) -> None:
    with pytest.raises(InstepError, match="a rank's records cannot be read"):
        records_of([text])
