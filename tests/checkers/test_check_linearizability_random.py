"""The search, compared with a real register and with an exhaustive search."""

from __future__ import annotations

import random
from dataclasses import replace

from brute_register import explains
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_register import Load, simulate

from instep.testing.checkers import Operation, Reply, check_linearizability

EXPLORE = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

small_loads = st.builds(
    Load,
    operations=st.integers(1, 6),
    clients=st.integers(1, 4),
    unknown=st.sampled_from([0.0, 0.3, 0.6]),
    values=st.sampled_from([0, 1, 2, 3]),
    told=st.sampled_from([0.0, 0.5, 1.0]),
)
loads = st.builds(
    Load,
    operations=st.integers(1, 300),
    keys=st.integers(1, 4),
    clients=st.integers(1, 8),
    unknown=st.sampled_from([0.0, 0.05, 0.2]),
    values=st.sampled_from([0, 2, 5]),
    told=st.sampled_from([0.0, 0.5, 1.0]),
)
seeds = st.integers(0, 1 << 32)


def spoil(history: list[Operation], rng: random.Random) -> list[Operation]:
    """Change one answer, or one time, to something that may be wrong."""
    known = [index for index, operation in enumerate(history) if operation.reply is not None]
    if not known:
        return history
    index = rng.choice(known)
    operation = history[index]
    assert operation.reply is not None
    reply, returned_at = operation.reply, operation.returned_at
    assert returned_at is not None
    which = rng.randrange(5)
    if which == 0 and reply.applied is not None and operation.kind != "put":
        reply = replace(reply, applied=not reply.applied)
    elif which == 1 and operation.kind == "get":
        others = [o.args[-1] for o in history if o.kind in ("put", "create")]
        value = rng.choice([None, *others])
        reply = replace(reply, value=value, mod_revision=None if value is None else reply.mod_revision)
    elif which == 2 and reply.revision is not None:
        reply = replace(reply, revision=max(1, reply.revision + rng.choice([-2, -1, 1, 2])))
    elif which == 3 and reply.mod_revision is not None:
        reply = replace(reply, mod_revision=max(1, reply.mod_revision + rng.choice([-1, 1])))
    else:
        returned_at = operation.called_at + (returned_at - operation.called_at) * rng.random() * 0.3
    spoilt = replace(operation, reply=reply, returned_at=returned_at)
    return [*history[:index], spoilt, *history[index + 1 :]]


@EXPLORE
@given(loads, seeds)
def test_the_history_of_a_register_is_linearizable(load: Load, seed: int) -> None:
    verdict = check_linearizability(simulate(load, seed))
    assert verdict.answer == "yes", str(verdict)


@settings(EXPLORE, max_examples=1500)
@given(small_loads, seeds)
def test_small_histories_get_the_verdict_of_an_exhaustive_search(load: Load, seed: int) -> None:
    rng = random.Random(seed)
    history = simulate(load, seed)
    for _ in range(rng.randrange(4)):
        history = spoil(history, rng)
    assert check_linearizability(history).answer == ("yes" if explains(history) else "no")


@EXPLORE
@given(loads, seeds)
def test_a_read_of_a_value_that_was_never_written_is_always_found(load: Load, seed: int) -> None:
    history = simulate(load, seed)
    end = max(operation.returned_at or operation.called_at for operation in history)
    lie = Operation("liar", "get", "k0", (), Reply.found("nobody wrote this"), end / 2, end)
    assert check_linearizability([*history, lie], max_states=2_000).answer == "no"


@EXPLORE
@given(loads, seeds)
def test_a_violation_comes_with_a_minimal_prefix_that_is_wrong(load: Load, seed: int) -> None:
    rng = random.Random(seed)
    history = simulate(load, seed)
    for _ in range(5):
        history = spoil(history, rng)
    verdict = check_linearizability(history, max_states=5_000)
    if verdict.answer != "no":
        return
    offending = list(verdict.offending)
    assert check_linearizability(offending, max_states=5_000).answer == "no"
    last = max(offending, key=lambda operation: operation.returned_at or 0)
    opened = [o if o is not last else replace(o, reply=None, returned_at=None) for o in offending]
    assert check_linearizability(opened, max_states=100).answer != "no"


def test_twenty_thousand_operations_are_decided_with_few_states() -> None:
    """On 50 keys, with 5 % unknown outcomes, with and without revisions, with few values and with many."""
    for told, values in ((1.0, 0), (0.0, 5)):
        history = simulate(Load(20_000, keys=50, clients=12, values=values, told=told), seed=1)
        assert decided(history) == "yes"
    history[10_000:10_000] = [
        replace(history[10_000], kind="get", args=(), reply=Reply.found("never"), returned_at=1e9)
    ]
    assert decided(history) == "no"


def decided(history: list[Operation]) -> str:
    """Bounded by the number of states: a time limit would depend on the machine."""
    return check_linearizability(history, budget_s=3600, max_states=100_000).answer
