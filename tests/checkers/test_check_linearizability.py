"""Linearizability on histories known to be good and known to be bad."""

from __future__ import annotations

import itertools
import time

import pytest

from instep.errors import SettingsError
from instep.testing.checkers import Operation, Reply, Value, check_linearizability

wrote, refused, found, absent = Reply.wrote, Reply.refused, Reply.found, Reply.absent


def op(times: str, kind: str, *args: Value, reply: Reply | None = None, key: str = "k") -> Operation:
    """`times` is "1-4", or "1-" for an unknown outcome."""
    called_at, returned_at = times.split("-")
    return Operation("c", kind, key, args, reply, float(called_at), float(returned_at) if returned_at else None)


def put(times: str, value: Value, revision: int | None = None, **more: str) -> Operation:
    return op(times, "put", value, reply=None if times.endswith("-") else wrote(revision), **more)


def get(times: str, reply: Reply, **more: str) -> Operation:
    return op(times, "get", reply=reply, **more)


GOOD = {
    "a read of what was written": [put("1-2", "a"), get("3-4", found("a"))],
    "a read during a write may find the old or the new": [
        put("1-2", "a"), put("3-9", "b"), get("4-5", found("a")), get("6-7", found("b")),
    ],
    "an unknown write that happened": [put("1-2", "a"), put("3-", "b"), get("4-5", found("a")), get("6-7", found("b"))],
    "an unknown write that never happened": [put("1-2", "a"), put("3-", "b"), get("4-5", found("a"))],
    "an unknown write that happened long after its caller gave up": [
        put("1-", "late"), put("2-3", "a"), get("4-5", found("a")), put("6-7", "b"), get("8-9", found("late")),
    ],
    "an unknown delete": [put("1-2", "a"), op("3-", "delete"), get("4-5", absent())],
    "deleted and created again, both unknown": [
        put("1-2", "a", 2), op("3-", "delete"), op("4-", "create", "b"), get("5-6", found("b", 4)),
    ],
    "a compare that failed because of an unknown write nobody saw": [
        put("1-2", "a", 2), put("3-", "b"), op("4-5", "cas_value", "a", "c", reply=refused(3)),
    ],
    "one of two creates wins": [op("1-5", "create", "a", reply=wrote(2)), op("1-5", "create", "b", reply=refused(2))],
    "a compare with revision 0 creates": [op("1-2", "cas_revision", 0, "a", reply=wrote(2)), get("3-4", found("a", 2))],
    "a delete of nothing": [op("1-2", "delete", reply=refused(1)), get("3-4", absent())],
    "keys are apart": [put("1-2", "a"), get("3-4", absent(), key="other")],
    "a read without an answer says nothing": [put("1-2", "a"), op("3-", "get")],
}  # fmt: skip
BAD = {
    "a stale read": [put("1-2", "a"), put("3-4", "b"), get("5-6", found("a"))],
    "a lost write": [put("1-2", "a"), get("3-4", absent())],
    "a read from nowhere": [put("1-2", "a"), get("3-4", found("z"))],
    "a read of the future": [get("1-2", found("a")), put("3-4", "a")],
    "a read of an unknown write that was called later": [get("1-2", found("a")), put("3-", "a")],
    "reads that go back": [
        put("1-2", "a"), put("3-20", "b"), get("4-5", found("b")), get("6-7", found("a")),
    ],
    "an unknown write that happened twice": [
        put("1-", "a"), put("2-3", "b"), get("4-5", found("a")), put("6-7", "c"), get("8-9", found("a")),
    ],
    "a write that was repeated: its revision changed": [put("1-2", "a", 2), get("3-4", found("a", 3))],
    "two creates win": [op("1-5", "create", "a", reply=wrote()), op("1-5", "create", "b", reply=wrote())],
    "two compares with one revision win": [
        put("1-2", "a", 2), op("3-9", "cas_revision", 2, "b", reply=wrote()),
        op("3-9", "cas_revision", 2, "c", reply=wrote()),
    ],
    "a compare holds for a value that is gone": [
        put("1-2", "a"), put("3-4", "b"), op("5-6", "cas_value", "a", "c", reply=wrote()),
    ],
    "a compare fails although it held": [put("1-2", "a", 2), op("3-4", "cas_revision", 2, "b", reply=refused())],
    "a create fails although there was nothing": [op("1-2", "create", "a", reply=refused())],
    "a delete finds nothing although there was something": [put("1-2", "a"), op("3-4", "delete", reply=refused())],
    "revisions against real time": [put("1-2", "a", 5), put("3-4", "b", 4), get("5-6", found("b", 4))],
    "a read at an old revision": [put("1-2", "a", 5), get("3-4", absent(revision=4))],
    "no revision was left for a write": [put("1-2", "a", 5), put("3-4", "b"), put("5-6", "c", 6)],
    "a compare that held tells what can come before it": [
        put("1-2", "a"), op("3-4", "cas_revision", 4, "b", reply=wrote()),
        op("5-6", "cas_revision", 3, "c", reply=wrote()),
    ],
    "a compare refused the only revision that was left": [
        put("1-2", "a", 2), put("3-4", "b"), op("5-6", "create", "x", reply=refused(3)),
        op("7-8", "cas_revision", 3, "c", reply=refused(4)),
    ],
    "a read finds the revision that a compare had ruled out": [
        put("1-2", "a", 2), put("3-4", "a"), op("5-6", "cas_revision", 5, "b", reply=refused()),
        get("7-8", found("a", 5)),
    ],
    "a header before the version it came with": [get("1-9", found("a", 5, revision=4)), put("1-9", "a")],
    "a write was told another's revision": [put("1-5", "a", 5), put("1-5", "b", 5)],
    "a read found a version that was overwritten at its header's revision": [
        put("1-9", "a", 5), put("1-9", "b", 6), get("1-9", found("a", 5, revision=7)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_this_is_linearizable(name: str) -> None:
    assert check_linearizability(GOOD[name]).answer == "yes"


@pytest.mark.parametrize("name", BAD)
def test_this_is_not(name: str) -> None:
    verdict = check_linearizability(BAD[name])
    assert verdict.answer == "no"
    assert verdict.violations[0].rule == "linearizable"
    assert "no order of" in str(verdict)


@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_found_among_good_operations_on_other_keys(name: str) -> None:
    others = [put(f"{n}-{n + 1}", f"v{n}", n + 100, key=f"other{n % 7}") for n in range(50)]
    verdict = check_linearizability([*others, *BAD[name]])
    assert verdict.answer == "no"
    assert {operation.key for operation in verdict.offending} == {"k"}


def test_the_offending_part_ends_with_the_first_answer_that_cannot_be_explained() -> None:
    good = [op for n in range(0, 40, 2) for op in (put(f"{n}-{n + 0.5}", n), get(f"{n + 1}-{n + 1.5}", found(n)))]
    stale, after = get("50-51", found(4)), [put("60-61", "x"), get("62-63", found("y"))]
    verdict = check_linearizability([*good, stale, *after])
    assert verdict.offending == (*good, stale)
    assert str(stale) in verdict.violations[0].sentence


def test_initial_values_can_be_given() -> None:
    history = [get("1-2", found("old", 7)), op("3-4", "cas_revision", 7, "new", reply=wrote(9))]
    assert check_linearizability(history, initial={"k": "old"}).answer == "yes"
    assert check_linearizability(history).answer == "no"


def test_an_empty_history_is_undecided() -> None:
    assert check_linearizability([]).answer == "undecided"


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(SettingsError, match="not an operation on a register"):
        check_linearizability([op("1-2", "swap", "a", reply=wrote())])


def hard() -> list[Operation]:
    """Many different unknown writes and reads that any of them explains, but no order that explains all."""
    unknown = [op("0-", kind, f"v{n}") for n in range(12) for kind in ("put", "create")]
    unknown += [op("0-", "cas_value", f"v{n}", f"v{(n + 5) % 12}") for n in range(12)]
    asks = [op(f"{n + 1}-{n + 1.5}", "cas_value", f"v{n % 12}", "x", reply=refused()) for n in range(40)]
    reads = [get(f"{n + 100}-{n + 100.5}", found(f"v{(n * 5) % 12}")) for n in range(30)]
    return [*unknown, *asks, *reads]


def test_a_search_with_too_many_states_is_undecided_and_names_the_key() -> None:
    verdict = check_linearizability([*hard(), put("1-2", "a", key="easy")], max_states=2000)
    assert verdict.answer == "undecided"
    assert not verdict.passed
    assert verdict.note == "no decision in 2000 situations on k"


def test_a_search_beyond_its_time_limit_is_undecided() -> None:
    verdict = check_linearizability(hard(), budget_s=20.0, clock=itertools.count().__next__)
    assert (verdict.answer, verdict.note) == ("undecided", "no decision in 20 s on k")


def test_the_time_limit_holds_with_thousands_of_concurrent_operations() -> None:
    """Each state takes milliseconds: one of ten thousand possible compares fits."""
    chain = [op(f"1-{2 + n * 7919 % 10_007}", "cas_value", f"v{n}", f"v{n + 1}", reply=wrote()) for n in range(10_000)]
    began = time.monotonic()
    verdict = check_linearizability(chain, initial={"k": "v0"}, budget_s=0.5)
    assert verdict.answer == "undecided"
    assert time.monotonic() - began < 5


def test_a_put_that_was_refused_is_an_error_of_the_record() -> None:
    with pytest.raises(SettingsError, match="a put of k is never refused"):
        op("1-2", "put", "a", reply=refused())


def test_a_hard_key_does_not_hide_a_plain_fault_in_another() -> None:
    fault = [put("1-2", "a", key="z"), *(get(f"{n}-{n + 1}", absent(), key="z") for n in range(3, 300, 2))]
    assert check_linearizability([*hard(), *fault], max_states=5000).answer == "no"
