"""Which of a node's workers have stalled, and which one its candidate names."""

from __future__ import annotations

import pytest

from instep.agent.stall import FIRST_STEPS, STEPS, Nomination, WorkerProgress, is_stalled, nominate
from instep.protocol.records import WorkerId

TIMEOUT_S = 60.0
NOW = 100_000.0
W0, W1, W2 = (WorkerId(rank, f"w{rank}") for rank in range(3))


def worker(rank: int, silent_s: float = 0.0, *, step_time_s: float = 0.1, joined: bool = True) -> WorkerProgress:
    return WorkerProgress(
        rank=rank, incarnation=f"w{rank}", joined=joined, trains=joined, at=NOW - silent_s, step_time_s=step_time_s
    )


def stuck(*ranks: int, silent_s: float = 100.0) -> list[WorkerProgress]:
    return [worker(rank, silent_s) for rank in ranks]


def named(before: Nomination | None, *workers: WorkerProgress, leads: bool = True, rivals: bool = False) -> Nomination:
    chosen = nominate(before, workers, NOW, timeout_s=TIMEOUT_S, leads=leads, rivals=rivals)
    assert chosen is not None
    return chosen


# -- who stalls ----------------------------------------------------------------------------------------------------


def test_no_boundary_for_longer_than_the_timeout_is_a_stall() -> None:
    assert not is_stalled(worker(0, TIMEOUT_S), NOW, TIMEOUT_S)
    assert is_stalled(worker(0, TIMEOUT_S + 0.1), NOW, TIMEOUT_S)


@pytest.mark.parametrize("step_time_s", [3.1, 30.0, 600.0])
def test_slow_steps_may_take_many_times_as_long_as_before(step_time_s: float) -> None:
    assert not is_stalled(worker(0, STEPS * step_time_s, step_time_s=step_time_s), NOW, TIMEOUT_S)
    assert is_stalled(worker(0, STEPS * step_time_s + 1, step_time_s=step_time_s), NOW, TIMEOUT_S)


def test_the_first_steps_may_take_longer_as_they_compile_and_warm_up() -> None:
    assert not is_stalled(worker(0, FIRST_STEPS * TIMEOUT_S, step_time_s=0.0), NOW, TIMEOUT_S)
    assert is_stalled(worker(0, FIRST_STEPS * TIMEOUT_S + 1, step_time_s=0.0), NOW, TIMEOUT_S)


def test_a_worker_before_its_first_boundary_has_not_stalled() -> None:
    assert not is_stalled(worker(0, 10**6, joined=False), NOW, TIMEOUT_S)


@pytest.mark.parametrize(("excused_for_s", "stalls"), [(500.0, False), (0.0, False), (-59.0, False), (-61.0, True)])
def test_the_timer_of_an_excused_worker_starts_when_the_excuse_ends(excused_for_s: float, stalls: bool) -> None:
    excused = WorkerProgress(
        rank=0,
        incarnation="w0",
        joined=True,
        trains=True,
        at=NOW - 1000,
        excused_until=NOW + excused_for_s,
        step_time_s=0.1,
    )
    assert is_stalled(excused, NOW, TIMEOUT_S) == stalls


# -- who is named --------------------------------------------------------------------------------------------------


def test_without_workers_none_is_named() -> None:
    assert nominate(None, [], NOW, timeout_s=TIMEOUT_S, leads=False, rivals=True) is None
    assert nominate(Nomination(W0), [], NOW, timeout_s=TIMEOUT_S, leads=True, rivals=True) is None


def test_at_the_start_the_lowest_rank_is_named_in_any_order_of_arrival() -> None:
    first = named(None, worker(2, joined=False))
    assert first.worker == W2
    assert named(first, worker(2, joined=False), worker(1, joined=False)).worker == W1


def test_a_named_worker_stays_named_when_a_lower_rank_returns() -> None:
    assert named(Nomination(W1), worker(0, joined=False), worker(1)).worker == W1
    assert named(Nomination(W1), worker(0), worker(1)).worker == W1


def test_when_the_named_worker_leaves_the_lowest_training_rank_follows() -> None:
    assert named(Nomination(W0), worker(1, joined=False), worker(2), worker(3)).worker == W2
    assert named(Nomination(W0), worker(1, joined=False)).worker == W1


@pytest.mark.parametrize("leads", [True, False])
def test_a_stalled_worker_yields_to_a_progressing_one_whether_it_leads_or_not(leads: bool) -> None:
    assert named(Nomination(W0), *stuck(0, 1), worker(2), leads=leads).worker == W2


def test_when_the_named_worker_leaves_and_all_others_stall_the_lowest_follows() -> None:
    assert named(Nomination(W0), *stuck(1, 2)).worker == W1


def test_a_stalled_leader_yields_even_if_its_siblings_are_stalled() -> None:
    passed = named(Nomination(W0), *stuck(0, 1, 2))
    assert passed.worker == W1
    assert not passed.yielded


def test_a_worker_that_takes_over_gets_its_own_timeout() -> None:
    given = WorkerProgress(
        rank=1, incarnation="w1", joined=True, trains=True, at=NOW - 100, excused_until=NOW - 1, step_time_s=0.1
    )
    before = named(Nomination(W0), *stuck(0, 1))
    assert named(before, *stuck(0), given).worker == W1


def test_if_all_workers_stall_each_leads_once_and_the_last_one_stays() -> None:
    everybody = stuck(0, 1, 2)
    now = named(None, *everybody)
    order = [now.worker]
    for _ in range(10):
        now = named(now, *everybody)
        order.append(now.worker)
    assert order == [W0, W1, *[W2] * 9]
    assert not now.yielded


def test_the_last_worker_yields_to_other_nodes_and_stays_their_last_resort() -> None:
    before = named(Nomination(W0), *stuck(0, 1), rivals=True)
    last = named(before, *stuck(0, 1), rivals=True)
    assert (last.worker, last.yielded) == (W1, 1)
    assert named(last, *stuck(0, 1), leads=False, rivals=True) == last
    assert named(last, *stuck(0, 1), leads=True, rivals=True).yielded == 2  # it came first again too early
    assert named(last, *stuck(0, 1), leads=True, rivals=False) == last


def test_a_lone_stalled_worker_keeps_the_lead_if_no_other_could_lead() -> None:
    alone = named(Nomination(W0), *stuck(0), rivals=False)
    assert (alone.worker, alone.yielded) == (W0, 0)
    assert named(Nomination(W0), *stuck(0), rivals=True).yielded == 1


def test_a_candidate_that_does_not_lead_is_kept_if_no_other_is_better() -> None:
    before = Nomination(W0)
    assert named(before, *stuck(0, 1), leads=False) == before


def test_progress_clears_the_stalls_and_the_leader_stays() -> None:
    last = named(named(Nomination(W0), *stuck(0, 1), rivals=True), *stuck(0, 1), rivals=True)
    assert named(last, worker(0), worker(1), leads=False) == Nomination(W1)
    leading = named(last, worker(0), worker(1), leads=True)
    assert (leading.worker, leading.passed, leading.yielded) == (W1, {}, 1)  # its key stays as it is


def test_a_worker_that_progressed_and_stalled_again_may_be_named_again() -> None:
    before = named(Nomination(W0), *stuck(0, 1))
    again = named(before, *stuck(0, silent_s=70), *stuck(1))
    assert again.worker == W0


@pytest.mark.parametrize("layout", [[[0]], [[0, 1, 2]], [[0], [1], [2]], [[0, 1], [2, 3]], [[0, 1, 2], [3], [4, 5]]])
def test_in_a_stuck_run_each_worker_leads_at_most_once_and_then_one_stays(
    layout: list[list[int]],
) -> None:
    queue = list(range(len(layout)))
    nominations = {node: named(None, *stuck(*ranks), leads=False) for node, ranks in enumerate(layout)}
    led: list[WorkerId] = []
    while True:
        node = queue[0]
        before = nominations[node]
        if not before.yielded:
            led.append(before.worker)
        rivals = any(not nominations[other].yielded for other in queue[1:])
        nominations[node] = after = named(before, *stuck(*layout[node]), rivals=rivals)
        if (after.worker, after.yielded) == (before.worker, before.yielded):
            break
        queue = [*queue[1:], node]
    assert not nominations[queue[0]].yielded
    assert sorted(led) == [WorkerId(rank, f"w{rank}") for rank in range(sum(map(len, layout)))]


def test_a_healthy_slow_run_never_changes_its_leader() -> None:
    """Steps of 30 s and a timeout of 60 s, checked every second, with one step of 9 minutes among them."""
    now, at, nomination = 0.0, 0.0, None
    lengths = [30.0] * 5 + [540.0] + [30.0] * 5
    for length in lengths:
        while now < at + length:
            standing = WorkerProgress(rank=0, incarnation="w0", joined=True, trains=True, at=at, step_time_s=30.0)
            other = WorkerProgress(rank=1, incarnation="w1", joined=True, trains=True, at=at, step_time_s=30.0)
            nomination = nominate(nomination, [standing, other], now, timeout_s=TIMEOUT_S, leads=True, rivals=True)
            assert nomination == Nomination(W0)
            now += 1.0
        at = now
