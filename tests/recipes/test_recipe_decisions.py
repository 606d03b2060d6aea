"""The decisions of the recipes, without etcd."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from instep.errors import EtcdUnavailable, LeaseLost, SettingsError
from instep.etcd import Client, KeyValue
from instep.recipes.election import incumbent_of
from instep.recipes.group import members_of
from instep.recipes.naming import as_prefix, check_name, check_timeout
from instep.recipes.queue import Queue, QueueEntry, QueuePosition, in_order, position_of, removals
from instep.recipes.session import Session


def key(name: str, created: int, value: str = "", lease: int = 1) -> KeyValue:
    return KeyValue(name, value.encode(), created, created, 1, lease)


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_the_oldest_key_is_first_whatever_its_name() -> None:
    queue = in_order([key("q/a", 9), key("q/b", 5), key("q/c", 7)], "q/")
    assert [item.key for item in queue] == ["q/b", "q/c", "q/a"]
    assert position_of("q/b", queue) == QueuePosition(5, ())
    assert position_of("q/a", queue) == QueuePosition(9, tuple(queue[:2]))
    assert position_of("q/d", queue) is None


def test_tombstones_are_in_no_queue_and_no_group() -> None:
    found = [key("q/.gone/a", 1), key("q/a", 5, "x")]
    assert [item.key for item in in_order(found, "q/")] == ["q/a"]
    assert list(members_of(found, "q/")) == ["a"]
    incumbent = incumbent_of({item.key: item for item in found}, "q/")
    assert incumbent is not None
    assert (incumbent.value, incumbent.fence.token) == ("x", 5)
    assert incumbent_of({}, "q/") is None


def test_only_a_doubtful_entry_on_the_current_lease_needs_a_tombstone() -> None:
    sure, doubtful = QueueEntry("q/a", "", 1, entered=True), QueueEntry("q/b", "", 1, doubtful=True)
    texts = [op.text for op in removals([sure, doubtful], "q/", 1)]
    assert texts == ["delete q/a", "delete q/b", "put q/.gone/b"]
    assert [op.text for op in removals([doubtful], "q/", 2)] == ["delete q/b"]


def test_a_candidate_that_waits_learns_of_the_end_of_its_session_during_an_outage() -> None:
    class EndedSession:
        """It had a lease when the wait began."""

        looks = 0
        lease_id = 0

        async def wait_lease(self) -> int:
            self.looks += 1
            if self.looks > 1:
                raise LeaseLost("The session has ended.", lease_id=0)
            return 1

    class NoEtcd:
        async def range(self, prefix: str) -> None:
            raise EtcdUnavailable("no endpoint answers")

    queue = Queue(cast(Client, NoEtcd()), cast(Session, EndedSession()), "/q")
    with pytest.raises(LeaseLost):
        asyncio.run(asyncio.wait_for(queue.win("x"), 2.0))


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_prefix_ends_with_one_slash() -> None:
    assert as_prefix("/locks/a") == as_prefix("/locks/a/") == as_prefix("/locks/a//") == "/locks/a/"
    for prefix in (None, "", "/", "//", b"/locks", "locks/a", "/locks\0a", "/locks\n", " /locks"):
        with pytest.raises(SettingsError, match="such as /locks/data"):
            as_prefix(prefix)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), True, "5", None])
def test_a_timeout_is_a_number_of_seconds_above_0(timeout_s: Any) -> None:
    with pytest.raises(SettingsError, match="timeout"):
        check_timeout(timeout_s)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "x" * 201, None, 7])
def test_text_that_cannot_be_one_part_of_a_key_is_no_name(name: object) -> None:
    with pytest.raises(SettingsError, match="cannot be a member"):
        check_name(name, "a member")
