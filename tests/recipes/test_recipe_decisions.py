"""What the recipes decide from what they see, without etcd."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import pytest

from instep.coordination.barrier_scene import Entrant, Round, Scene, Step, next_step, not_all_came, opened, scene_of
from instep.coordination.budget import HISTORY, Account, Reset, Spent, after_reset, after_spending
from instep.coordination.election import incumbent_of
from instep.coordination.group import members_of
from instep.coordination.naming import as_prefix, check_name, check_timeout
from instep.coordination.queue import Entry, Place, in_order, place_of, removals
from instep.errors import BarrierTimeout, EtcdFull, SettingsError
from instep.etcd import KeyValue


def key(name: str, created: int, value: str = "", lease: int = 1) -> KeyValue:
    return KeyValue(name, value.encode(), created, created, 1, lease)


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_the_oldest_key_is_first_whatever_its_name() -> None:
    queue = in_order([key("q/a", 9), key("q/b", 5), key("q/c", 7)], "q/")
    assert [item.key for item in queue] == ["q/b", "q/c", "q/a"]
    assert place_of("q/b", queue) == Place(5, ())
    assert place_of("q/a", queue) == Place(9, tuple(queue[:2]))
    assert place_of("q/d", queue) is None


def test_tombstones_are_in_no_queue_and_no_group() -> None:
    found = [key("q/.gone/a", 1), key("q/a", 5, "x")]
    assert [item.key for item in in_order(found, "q/")] == ["q/a"]
    assert list(members_of(found, "q/")) == ["a"]
    incumbent = incumbent_of({item.key: item for item in found}, "q/")
    assert incumbent is not None
    assert (incumbent.value, incumbent.fence.token) == ("x", 5)
    assert incumbent_of({}, "q/") is None


def test_only_a_doubtful_entry_on_the_lease_at_hand_needs_a_tombstone() -> None:
    sure, doubtful = Entry("q/a", "", 1, entered=True), Entry("q/b", "", 1, doubtful=True)
    texts = [op.text for op in removals([sure, doubtful], "q/", 1)]
    assert texts == ["delete q/a", "delete q/b", "put q/.gone/b"]
    assert [op.text for op in removals([doubtful], "q/", 2)] == ["delete q/b"]


# -- the barrier -------------------------------------------------------------------------------------------------------


def scene(waiting: str = "", inside: str = "", number: int = 1) -> Scene:
    """Participants by letter, in order of their coming; those inside came first."""
    entrants = tuple(Entrant(name, 10 + i, 1, f"visit {name}") for i, name in enumerate(inside + waiting))
    members = {one.name: one.created for one in entrants[: len(inside)]}
    return Scene(50, Round(number, MappingProxyType(members)), 40, entrants)


def timed_out(
    now: Scene | None, names: Sequence[str] | None, *, registered: bool = True, trouble: EtcdFull | None = None
) -> BarrierTimeout:
    """What the participant "a" of three is told."""
    return not_all_came(now, "/b/", 3, names, "a", 1.0, registered=registered, trouble=trouble)


@pytest.mark.parametrize(
    ("now", "registered", "ours", "step"),
    [
        (scene(), False, False, Step.REGISTER),
        (scene(waiting="bc"), False, False, Step.REGISTER),
        (scene(waiting="bcd"), False, False, Step.FULL),
        (scene(inside="b"), False, False, Step.FULL),
        (scene(waiting="a"), False, False, Step.TAKEN),
        (scene(waiting="a"), False, True, Step.CLEAR),
        (scene(inside="a"), False, True, Step.CLEAR),
        (scene(waiting="a"), True, True, Step.WAIT),
        (scene(waiting="ab"), True, True, Step.WAIT),
        (scene(waiting="bca"), True, True, Step.OPEN),
        (scene(waiting="abcd"), True, True, Step.OPEN),
        (scene(waiting="bcda"), True, True, Step.FULL),
        (scene(inside="bcd", waiting="a"), True, True, Step.FULL),
        (scene(inside="abc"), True, True, Step.ENTERED),
        (scene(inside="a"), True, True, Step.ENTERED),
    ],
)
def test_each_participant_does_what_the_scene_asks_for(now: Scene, registered: bool, ours: bool, step: Step) -> None:
    assert next_step(now, 3, "a", registered=registered, ours=ours) is step


def test_the_first_to_come_are_let_in_and_the_number_rises() -> None:
    now = opened(scene(waiting="bcda", number=4), 3)
    assert (now.number, dict(now.members)) == (5, {"b": 10, "c": 11, "d": 12})
    assert Round.decode(now.encode().encode()) == now


def test_who_is_missing_is_named_where_names_are_known() -> None:
    late = timed_out(scene(waiting="ab"), ("a", "b", "c"))
    assert (late.missing, late.missing_count) == (("c",), 1)
    assert str(late) == "Not all came to the barrier /b/ in 1 s: c missing."
    late = timed_out(scene(waiting="ab"), None)
    assert (late.missing, late.missing_count) == ((), 1)
    assert "1 of 3 missing" in str(late)


def test_one_that_could_not_register_says_so_and_is_not_missing_itself() -> None:
    full = EtcdFull("no space.")
    late = timed_out(scene(waiting="b"), ("a", "b", "c"), registered=False, trouble=full)
    assert (late.missing, late.missing_count) == (("c",), 1)
    assert str(late).endswith(": a itself could not register, and c missing. Trouble with etcd until then: no space.")
    late = timed_out(scene(waiting="bc"), None, registered=False, trouble=full)
    assert (late.missing, late.missing_count) == ((), 0)
    assert "a itself could not register, and all others are there" in str(late)
    late = timed_out(None, ("a", "b", "c"), registered=False)
    assert (late.missing, late.missing_count) == (("b", "c"), 2)
    assert "etcd did not say who is there" in str(late)


def test_a_barrier_that_all_have_reached_and_nobody_could_open_says_that() -> None:
    late = timed_out(scene(waiting="abc"), ("a", "b", "c"), trouble=EtcdFull("no space"))
    assert (late.missing, late.missing_count) == ((), 0)
    assert "all are there, but it could not be opened" in str(late)


def test_a_member_that_came_back_under_a_former_name_is_not_inside() -> None:
    now = Scene(50, Round(1, MappingProxyType({"a": 10})), 40, (Entrant("a", 20, 1, "v"),))
    assert (now.inside, [one.name for one in now.waiting]) == ((), ["a"])


@pytest.mark.parametrize(
    "value", ["", "[]", "{}", '{"round": "x", "members": {}}', '{"round": 1, "members": [1]}', "1"]
)
def test_what_nobody_of_ours_wrote_is_no_round(value: str) -> None:
    assert Round.decode(value.encode()) == Round()


def test_a_scene_is_read_from_a_listing() -> None:
    kvs = [key("b/members/y", 8, "v2"), key("b/members/x", 9, "v1"), key("b/other", 3), key("b/round", 7, "{}")]
    now = scene_of(kvs, 12, round_key="b/round", members="b/members/")
    assert (now.revision, now.round_revision, now.round) == (12, 7, Round())
    assert now.entrants == (Entrant("y", 8, 1, "v2"), Entrant("x", 9, 1, "v1"))


# -- the budget --------------------------------------------------------------------------------------------------------


def test_an_attempt_is_spent_once_and_never_beyond_the_limit() -> None:
    first = after_spending(Account(), Spent("oom", "1"), 1)
    assert first is not None
    assert after_spending(first, Spent("oom", "1"), 1) is first
    assert after_spending(first, Spent("oom", "2"), 1) is None
    other = after_spending(first, Spent("preempted", "1"), 1)
    assert other is not None
    assert other.by_cause() == {"oom": 1, "preempted": 1}
    assert Account.decode(other.encode().encode()) == other


def test_a_reset_is_done_once_and_noted() -> None:
    account = Account((Spent("oom", "1"),), (Spent("oom", "1"),))
    after = after_reset(account, "ops", "why", "t1")
    assert (after.spent, after.history[-1]) == ((), Reset("ops", "why", {"oom": 1}, "t1"))
    assert after_reset(after, "ops", "why", "t1") is after
    assert after_reset(after, "ops", "why", "t2").history[-1] == Reset("ops", "why", {}, "t2")
    assert Account.decode(after.encode().encode()) == after


def test_the_history_keeps_its_end() -> None:
    account = Account()
    for number in range(HISTORY + 3):
        account = after_spending(account, Spent("oom", str(number)), HISTORY + 3) or account
    assert (len(account.spent), len(account.history)) == (HISTORY + 3, HISTORY)
    assert account.history[0] == Spent("oom", "3")


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_prefix_ends_with_one_slash() -> None:
    assert as_prefix("/locks/a") == as_prefix("/locks/a/") == as_prefix("/locks/a//") == "/locks/a/"
    for prefix in (None, "", "/", "//", b"/locks", "locks/a", "/locks\0a", "/locks\n", " /locks"):
        with pytest.raises(SettingsError, match="such as /locks/data"):
            as_prefix(prefix)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), True, "5", None])
def test_a_time_out_is_a_number_of_seconds_above_0(timeout_s: Any) -> None:
    with pytest.raises(SettingsError, match="time-out"):
        check_timeout(timeout_s)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "x" * 201, None, 7])
def test_what_cannot_be_one_part_of_a_key_is_no_name(name: object) -> None:
    with pytest.raises(SettingsError, match="cannot be a member"):
        check_name(name, "a member")
