"""The rules of the registry of checkpoints: a history that keeps them, and each rule broken once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest
from chaos.checks.registry import RegistryHistory

from instep.etcd import Event, KeyValue
from instep.names import INCARNATION_LENGTH
from instep.protocol.keys import Keys
from instep.protocol.records import Leader, Manifest, NodeMembers, Pointer, Snapshot, View

KEYS = Keys("/drills", "drill")


class History:
    """Events as etcd would send them; revisions count from 1."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._revisions = itertools.count(1)
        self._created: dict[str, int] = {}

    def write(self, *pairs: tuple[str, str]) -> int:
        revision = next(self._revisions)
        for key, text in pairs:
            created = self._created.setdefault(key, revision)
            self.events.append(Event("put", KeyValue(key, text.encode(), created, revision, 1, 0)))
        return revision

    def delete(self, *keys: str) -> None:
        revision = next(self._revisions)
        for key in keys:
            self._created.pop(key, None)
            self.events.append(Event("delete", KeyValue(key, b"", 0, revision, 0, 0)))

    def stand(self, name: str) -> int:
        """A candidate; returns its token."""
        return self.write((KEYS.candidate(name), "{}"))

    def lead(self, name: str, token: int = 0) -> int:
        """A candidate that leads; returns its token. `token`: of one that is a candidate already."""
        token = token or self.stand(name)
        leader = Leader(node=name, rank=0, incarnation="i", candidate=KEYS.candidate(name), token=token)
        self.write((KEYS.leader, leader.encode()))
        return token

    def commit(
        self, step: int, token: int, *, key: str = "", pointers: Iterable[str] = (KEYS.latest, KEYS.saved)
    ) -> None:
        manifest = manifest_of(step, token)
        pointer = Pointer(id=manifest.id, step=step, token=token).encode()
        own = (key or KEYS.checkpoint(manifest.id), manifest.encode())
        self.write(own, *((name, pointer) for name in pointers))

    def begin(self, number: int, checkpoint: str | None) -> None:
        view = View(
            number=number,
            world_size=1,
            schema_digest="",
            nodes={"a": NodeMembers(ranks=(0,), incarnations=("0" * INCARNATION_LENGTH,))},
            start=Snapshot(checkpoint=checkpoint),
            fresh=True,
        )
        self.write((KEYS.view, view.encode()))


def manifest_of(step: int, token: int) -> Manifest:
    return Manifest(
        id=f"{step}-{token}",
        step=step,
        token=token,
        path="/saves",
        digest="",
        view=1,
        world_size=1,
        rank=0,
        host="",
        node="",
        duration_s=0.1,
        committed_at="",
    )


def checked(history: History, *, steps_rise: bool = True, keep: int | None = 2) -> RegistryHistory:
    registry = RegistryHistory(KEYS, steps_rise=steps_rise, keep=keep)
    registry.feed(history.events)
    return registry


def test_a_history_by_the_rules_has_no_problems() -> None:
    history = History()
    first, second = history.lead("a"), history.stand("b")
    history.begin(1, None)
    history.commit(3, first)
    history.write((f"{KEYS.election}.gone/a", "{}"))
    history.delete(KEYS.candidate("a"))
    history.lead("b", second)
    history.commit(4, second)
    history.commit(7, second)
    history.delete(KEYS.checkpoint(f"3-{first}"))
    history.begin(2, f"7-{second}")
    registry = checked(history)
    assert registry.problems == []
    assert list(registry.registered) == [f"4-{second}", f"7-{second}"]
    assert [start.newest for start in registry.views.values()] == [None, f"7-{second}"]


def late(history: History, token: int) -> None:
    history.delete(KEYS.candidate("a"))
    history.commit(3, token)


def out_of_turn(history: History, token: int) -> None:
    history.commit(3, history.lead("b"))


def not_proclaimed(history: History, token: int) -> None:
    history.delete(KEYS.candidate("a"))
    history.commit(3, history.stand("b"))


def by_another_rank(history: History, token: int) -> None:
    history.commit(3, token + 100)


def twice(history: History, token: int) -> None:
    history.commit(3, token)
    history.delete(KEYS.candidate("a"))
    history.commit(3, history.lead("b"))


def again(history: History, token: int) -> None:
    history.commit(3, token)
    history.commit(3, token)


def without_pointer(history: History, token: int) -> None:
    history.commit(3, token, pointers=[KEYS.latest])


def under_another_name(history: History, token: int) -> None:
    history.commit(3, token, key=KEYS.checkpoint("4-1"))


def pointer_alone(history: History, token: int) -> None:
    history.commit(3, token)
    history.write((KEYS.latest, Pointer(id="2-1", step=2, token=1).encode()))


def forgotten(history: History, token: int) -> None:
    history.commit(3, token)
    history.commit(4, token)
    history.delete(KEYS.checkpoint(f"3-{token}"))


def newest_forgotten(history: History, token: int) -> None:
    history.commit(3, token)
    history.delete(KEYS.checkpoint(f"3-{token}"))


def pointer_deleted(history: History, token: int) -> None:
    history.commit(3, token)
    history.delete(KEYS.latest)


def old_start(history: History, token: int) -> None:
    history.commit(3, token)
    history.commit(4, token)
    history.begin(2, f"3-{token}")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (late, "a token that does not lead"),
        (out_of_turn, "a token that does not lead"),
        (not_proclaimed, "a token that does not lead"),
        (by_another_rank, "a token that does not lead"),
        (twice, "committed after step 3"),
        (again, "was committed again"),
        (without_pointer, "without its pointers"),
        (under_another_name, "4-1 holds checkpoint 3-1"),
        (pointer_alone, "moved without a commit"),
        (forgotten, "forgotten with 1 newer"),
        (newest_forgotten, "which was forgotten"),
        (pointer_deleted, "the pointer was deleted"),
        (old_start, "view 2 starts from 3-1 and 4-1 is the newest"),
    ],
    ids=lambda item: item.__name__ if callable(item) else "",
)
def test_what_is_against_a_rule_is_reported(wrong: Callable[[History, int], None], problem: str) -> None:
    history = History()
    wrong(history, history.lead("a"))
    assert problem in checked(history).problems[0]


def test_a_run_under_faults_may_save_a_step_twice_and_forget_all_but_the_newest() -> None:
    history = History()
    first = history.lead("a")
    history.commit(10, first)
    history.delete(KEYS.candidate("a"))
    second = history.lead("b")
    history.commit(10, second)
    history.delete(KEYS.checkpoint(f"10-{first}"))
    registry = checked(history, steps_rise=False, keep=0)
    assert registry.problems == []
    assert (list(registry.registered), registry.newest) == ([f"10-{second}"], f"10-{second}")
