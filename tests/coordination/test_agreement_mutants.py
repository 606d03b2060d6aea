"""The machine finds each broken rule of the protocol. For rare violations, agreement_chains.py has the chain of events.

With the unchanged rules, every chain keeps the promises.
"""

from __future__ import annotations

import agreement_chains as chains
import agreement_mutants as mutants
import pytest
import virtual_loop
from agreement_chains import Chain
from agreement_machine import HUNT, AgreementMachine, DriftingMachine, LockstepMachine
from agreement_mutants import Mutant
from hypothesis.stateful import run_state_machine_as_test

ONE_NODE = ((0, 1),)
TWO_NODES = ((0,), (1,))
THREE_NODES = ((0,), (1,), (2,))

Machine = type[AgreementMachine]

BROKEN = r"runs with|instead of|was applied|paused at|stopped at|was not agreed|neither done"
ENDLESS = "the tasks never come to rest"


@pytest.mark.parametrize(
    ("machine", "mutant"),
    [
        (LockstepMachine, mutants.pass_the_gate_undecided),
        (DriftingMachine, mutants.commit_without_all_acks),
        pytest.param(LockstepMachine, mutants.commit_without_all_acks, marks=pytest.mark.long),
        # There is a chain of events for each of these.
        pytest.param(DriftingMachine, mutants.acknowledge_before_all_are_armed, marks=pytest.mark.long),
        pytest.param(DriftingMachine, mutants.pass_the_gate_undecided, marks=pytest.mark.long),
        pytest.param(LockstepMachine, mutants.newcomers_ignore_the_directive, marks=pytest.mark.long),
        pytest.param(LockstepMachine, mutants.a_directive_applies_when_it_is_promised, marks=pytest.mark.long),
    ],
    ids=lambda item: item.__name__,
)
def test_the_machine_finds_a_broken_rule(machine: Machine, mutant: Mutant) -> None:
    with mutant(), pytest.raises(AssertionError, match=BROKEN):
        run_state_machine_as_test(machine, settings=HUNT)


LOCKSTEP: list[tuple[Chain, Mutant, str]] = [
    (chains.a_rank_is_replaced_between_commit_and_gate, mutants.newcomers_ignore_the_gate, "runs with"),
    (chains.a_rank_is_replaced_between_commit_and_gate, mutants.forget_the_previous_values, "runs with"),
    (
        chains.a_rank_is_replaced_after_all_promised_and_before_the_leader_knows,
        mutants.view_leaves_the_plan_open_and_commit_ignores_the_view,
        BROKEN,
    ),
    (chains.a_rank_joins_a_run_that_is_paused, mutants.newcomers_ignore_the_directive, "paused at"),
    (chains.a_stop_that_was_promised_is_aborted, mutants.a_directive_applies_when_it_is_promised, "was not agreed"),
    (chains.a_rank_is_replaced_after_etcd_has_lost_a_change, mutants.etcd_is_the_authority, "runs with"),
    (
        chains.etcd_loses_a_decision_that_one_rank_knows,
        mutants.abort_any_plan_of_the_number,
        "runs with|instead of",
    ),
    (
        chains.a_rank_is_replaced_while_its_process_lives,
        mutants.a_node_knows_its_workers_by_rank_alone,
        ENDLESS,
    ),
    (chains.a_run_is_restored_and_restarted, mutants.a_restore_leaves_the_pointer, "a restart resumes from"),
    (
        chains.a_run_is_restored_and_restarted,
        mutants.a_rank_ignores_that_the_run_is_restored,
        "it does not happen",
    ),
    (
        chains.a_run_is_restored_to_a_step_before_its_last_change_and_a_rank_is_replaced,
        mutants.a_restored_run_keeps_the_gate_of_the_last_change,
        "runs with",
    ),
    (
        chains.a_checkpoint_is_forgotten_while_the_run_agrees_to_restore_it,
        mutants.a_checkpoint_is_restored_though_it_was_forgotten,
        "which was forgotten",
    ),
    (
        chains.a_rank_commits_a_checkpoint_after_a_restore_was_agreed,
        mutants.a_checkpoint_from_before_a_restore_is_resumed,
        "which was abandoned",
    ),
    (
        chains.a_rank_verifies_its_checkpoint_and_is_replaced_before_the_others_answer,
        mutants.verified_in_another_view_counts,
        "not verified by",
    ),
    (
        chains.the_leader_sees_one_answer_before_the_other,
        mutants.the_first_to_verify_decides_for_all,
        "not verified by",
    ),
    (
        chains.one_rank_cannot_read_the_newest_checkpoint,
        mutants.a_refusal_counts_for_the_next_checkpoint_too,
        "no rank had refused",
    ),
    (
        chains.a_rank_fails_twice_and_the_leader_sees_only_the_first_failure,
        mutants.a_failure_of_another_view_counts,
        "is counted for view",
    ),
    (
        chains.the_attempts_are_reset_when_a_rank_fails_and_the_leader_does_not_see_it,
        mutants.a_reset_of_the_attempts_is_not_noticed,
        "are counted after",
    ),
    (
        chains.one_rank_calls_a_barrier_again_before_the_other,
        mutants.arrivals_before_the_last_release_count,
        ENDLESS,
    ),
    (
        chains.a_rank_is_replaced_when_a_barrier_is_released_and_no_rank_knows,
        mutants.a_release_counts_for_the_ranks_of_a_later_view,
        "passed on account of another",
    ),
]
DRIFTING: list[tuple[Chain, Mutant, str]] = [
    (chains.a_rank_reaches_its_gate_before_the_acks_arrive, mutants.pass_the_gate_undecided, BROKEN),
    (
        chains.a_rank_waits_at_the_gate_of_a_plan_that_it_refused,
        mutants.a_refused_plan_is_named_like_the_plan_before_it,
        "was applied",
    ),
    (chains.the_database_is_full_while_a_rank_reaches_its_gate, mutants.commit_without_the_mark, "runs with"),
    (chains.a_rank_leaves_far_ahead_of_the_one_that_leads, mutants.a_worker_that_left_counts_as_armed, "runs with"),
    (chains.a_rank_is_far_ahead_of_the_one_that_leads, mutants.promise_too_late, "runs with"),
]
CASES = [(LockstepMachine, TWO_NODES, *case) for case in LOCKSTEP]
CASES += [(DriftingMachine, TWO_NODES, *case) for case in DRIFTING]
CASES.append(
    (
        DriftingMachine,
        ONE_NODE,
        chains.one_of_two_ranks_of_a_node_does_not_receive_the_plan,
        mutants.acknowledge_before_all_are_armed,
        "runs with",
    )
)
CASES.append(
    (
        LockstepMachine,
        ONE_NODE,
        chains.the_first_of_two_ranks_of_a_node_is_replaced,
        mutants.a_node_pairs_ranks_and_incarnations_wrongly,
        "it does not happen",
    )
)


@pytest.mark.parametrize(
    ("machine", "layout", "chain", "mutant", "violation"),
    [pytest.param(*case, id=f"{case[2].__name__}-{case[3].__name__}") for case in CASES],
)
def test_a_chain_of_events_keeps_the_promise_and_breaks_it_with_the_rule_broken(
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    layout: tuple[tuple[int, ...], ...],
    chain: Chain,
    mutant: Mutant,
    violation: str,
) -> None:
    _play(machine, chain, layout)
    monkeypatch.setattr(virtual_loop, "MAX_ROUNDS", 2000)
    with mutant(), pytest.raises(AssertionError, match=violation):
        _play(machine, chain, layout)


def test_two_ranks_replaced_in_quick_succession_both_begin() -> None:
    """The second view counts the newcomer of the first as a rank that stays, because it may have begun."""
    _play(LockstepMachine, chains.two_ranks_are_replaced_before_the_first_may_begin, THREE_NODES)


def test_a_node_writes_what_it_holds_in_each_epoch_that_any_agent_began() -> None:
    _play(LockstepMachine, chains.etcd_loses_what_a_node_holds_again_and_another_agent_notices)


def test_a_receipt_that_was_not_due_when_etcd_went_back_is_written_later() -> None:
    _play(DriftingMachine, chains.etcd_goes_back_while_one_of_two_ranks_of_a_node_has_applied_a_change, ONE_NODE)


def test_the_number_of_an_aborted_plan_that_etcd_has_lost_is_not_reused() -> None:
    """The ranks would not answer a plan of that number: each would run into its timeout."""
    _play(DriftingMachine, chains.etcd_loses_a_plan_that_was_aborted)


def test_ranks_at_the_gate_of_a_plan_that_only_they_know_continue() -> None:
    _play(LockstepMachine, chains.etcd_loses_a_plan_that_was_promised_and_all_agents_are_new)


def _play(machine: Machine, chain: Chain, layout: tuple[tuple[int, ...], ...] = TWO_NODES) -> None:
    playing = machine()
    playing.begin_with(layout, stop=0)
    with playing.stack:
        chain(playing)
        playing.come_to_rest()
