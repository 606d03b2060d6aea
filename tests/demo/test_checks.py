"""The demo's verdict follows from what the ranks wrote down, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from demo_evidence import alone, evidence, receipt, trained

from instep.demo._checks import Evidence, Steered, check
from instep.demo._operator import Refusal
from instep.demo._proof import parse
from instep.errors import InstepError


def failed(found: Evidence) -> list[str]:
    return [item.claim for item in check(found) if not item.held]


def test_all_claims_hold_when_the_ranks_agree() -> None:
    assert failed(evidence()) == []


def test_a_rank_with_other_parameters_fails_the_demo() -> None:
    doctored = replace(evidence(), trained=(trained(0), trained(1, sha256="ab")))
    assert failed(doctored) == ["all 2 ranks hold bit-identical parameters"]


def test_a_rank_that_changed_one_step_later_fails_the_demo() -> None:
    doctored = replace(evidence(), trained=(trained(0), trained(1, changed_at=41)))
    assert failed(doctored) == ["all ranks used equal values at every step", "lr 3e-3 → 1e-3 at one step"]


def test_a_receipt_that_names_another_step_than_the_ranks_fails_the_demo() -> None:
    doctored = replace(evidence(), steered=(Steered("instep set", receipt(step=39)),))
    assert failed(doctored) == ["lr 3e-3 → 1e-3 at one step"]


def test_a_change_that_one_rank_did_not_apply_fails_the_demo() -> None:
    doctored = replace(evidence(), steered=(Steered("instep set", receipt(applied=1)),))
    assert failed(doctored) == ["lr 3e-3 → 1e-3 at one step"]


def test_a_rank_without_a_proof_fails_every_claim_about_the_ranks() -> None:
    claims = failed(replace(evidence(), trained=(trained(0),)))
    assert len(claims) == 4
    assert failed(replace(evidence(), trained=())) != []


def test_a_rank_that_ran_fewer_steps_fails_the_demo() -> None:
    doctored = replace(evidence(), trained=(trained(0), replace(trained(1), steps=99)))
    assert failed(doctored) == ["all ranks used equal values at every step"]


def test_a_bad_value_that_reached_etcd_fails_the_demo() -> None:
    doctored = replace(evidence(), refusal=Refusal("lr=-1", "it was not refused", "0.001", "-1", written=True))
    assert failed(doctored) == ["lr=-1 is refused before it is written"]


@pytest.mark.parametrize("guilty", [trained(1, grpc=True), trained(1, thread="poller")])
def test_a_trainer_with_an_etcd_client_or_a_thread_fails_the_demo(guilty: object) -> None:
    doctored = replace(evidence(), trained=(trained(0), guilty))
    assert failed(doctored) == ["trainers have no etcd client, no thread"]


def test_ranks_that_did_not_drift_without_instep_fail_the_demo() -> None:
    """The comparison is an experiment: it may come out otherwise, and then it says so."""
    same = (alone(0, sha256="bb", difference=0.0), alone(1, sha256="bb", difference=0.0))
    assert failed(replace(evidence(), alone=same)) == ["without Instep the ranks drift apart"]


def test_ranks_that_differed_before_the_change_prove_nothing() -> None:
    other = (alone(0, sha256="bb", difference=0.0), alone(1, sha256="cc", difference=1e-3, before="other"))
    assert failed(replace(evidence(), alone=other)) == ["without Instep the ranks drift apart"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rank": 0, "steps": 1, "used": [1]}'])
def test_a_proof_that_cannot_be_read_is_an_error_and_no_pass(text: str) -> None:
    with pytest.raises(InstepError, match="a rank's proof cannot be read"):
        parse(text)
