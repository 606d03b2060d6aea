"""What the node that coordinates does next, from a scene: each line of a table is a situation and what comes of it.

Nodes stand in the order of their coming. `asks("a")` wants its first round, `asks("a", 1)` was in round 1 and wants the
next, `runs("a", 1)` is content with round 1. A standing round is its number and its nodes by rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.rendezvous.decision import (
    RefuseNode,
    RegisteredNode,
    RendezvousSituation,
    WriteRound,
    decide,
    epoch_of,
    round_status,
)
from instep.rendezvous.records import Address, Cause, Closed, Limits, Registration, Round, Seat


@dataclass(frozen=True)
class Said:
    """A node and its registration, before it has a place among the others."""

    name: str
    registration: Registration | None


def limits(text: str) -> Limits:
    least, _, most = text.partition(":")
    return Limits(min_nodes=int(least), max_nodes=int(most))


def _registered(name: str, number: int, asks: bool, epoch: int, nnodes: str, cause: Cause) -> Said:
    registration = Registration(
        epoch=epoch,
        host=f"host-{name}",
        pid=ord(name),
        limits=limits(nnodes),
        round=number,
        asks=asks,
        cause=cause,
        store=Address(host=f"host-{name}", port=ord(name)),
    )
    return Said(name, registration)


def asks(name: str, number: int = 0, *, epoch: int = 1, nnodes: str = "1:2", cause: Cause = "new") -> Said:
    return _registered(name, number, True, epoch, nnodes, cause)


def runs(name: str, number: int, *, epoch: int = 1, nnodes: str = "1:2") -> Said:
    return _registered(name, number, False, epoch, nnodes, "new")


def unreadable(name: str) -> Said:
    return Said(name, None)


def scene(
    *nodes: Said, round: str = "", nnodes: str = "1:2", epoch: int = 1, closed: int = 0, **more: Any
) -> RendezvousSituation:
    """`round` is "2:ab", or "2:ab!" when it is wanted anew; `closed` an epoch."""
    standing = None
    if round:
        number, _, names = round.rstrip("!").partition(":")
        seats = tuple(Seat(node=name, host=f"host-{name}", pid=ord(name)) for name in names)
        standing = Round(
            epoch=epoch, number=int(number), limits=limits(nnodes), seats=seats, wanted=round.endswith("!")
        )
    return RendezvousSituation(
        nodes=tuple(
            RegisteredNode(said.name, 100 + place, said.registration)
            for place, said in enumerate(nodes)
            if said.registration is not None
        ),
        unreadable=frozenset(said.name for said in nodes if said.registration is None),
        round=standing,
        closed=Closed(epoch=closed) if closed else None,
        gone=frozenset(more.pop("gone", "")),
        refused=frozenset(more.pop("refused", "")),
        **more,
    )


def outcome(now: RendezvousSituation) -> str:
    action = decide(now)
    if action is None:
        return "last call" if round_status(now).is_last_call else "nothing"
    if isinstance(action, RefuseNode):
        return f"refuse {action.node}"
    made = action.round
    names = "".join(seat.node for seat in made.seats)
    formed = now.round is None or made.number > now.round.number
    again = f"{made.number}:{names}{'!' if made.wanted else ''}"
    return f"form {again}" if formed and made.seats else again


OVER: dict[str, Any] = {"last_call_over": True}
TROUBLE: dict[str, Any] = {"etcd_stable": False}

TABLE: dict[str, tuple[RendezvousSituation, str]] = {
    # -- who is waited for -----------------------------------------------------------------------------------------
    "with the most nodes a round is formed at once": (scene(asks("a"), asks("b")), "form 1:ab"),
    "with the least there is a last call": (scene(asks("a")), "last call"),
    "after it the least are enough": (scene(asks("a"), **OVER), "form 1:a"),
    "below the least it helps nobody": (scene(asks("a", nnodes="2:3"), **OVER), "nothing"),
    "of more than the most those who came last are left over": (
        scene(asks("c"), asks("a"), asks("b")),
        "form 1:ca",
    ),
    "a spare of the last round comes after those who had a seat, however early it came": (
        scene(asks("s"), asks("b", 1), asks("a", 1), round="1:ab!"),
        "form 2:ab",
    ),
    "a spare takes the place of one that has gone": (
        scene(asks("s"), asks("b", 1), round="1:ab!", gone="a"),
        "form 2:bs",
    ),
    # -- while workers run -----------------------------------------------------------------------------------------
    "one that runs keeps the round, whatever the clock says": (
        scene(runs("a", 1), asks("b", 1), round="1:ab!", **OVER),
        "last call",
    ),
    "one that was seated just now counts as running before it says so": (
        scene(asks("a"), asks("b"), round="1:ab"),
        "nothing",
    ),
    "one that asks anew has the others meet again": (
        scene(runs("a", 1), asks("b", 1), round="1:ab"),
        "1:ab!",
    ),
    "a newcomer with a place for it has the round formed anew": (scene(runs("a", 1), asks("b"), round="1:a"), "1:a!"),
    "a spare has not": (scene(runs("a", 1), runs("b", 1), asks("c"), round="1:ab"), "nothing"),
    "and it takes back what another had wanted": (
        scene(runs("a", 1), runs("b", 1), asks("c"), round="1:ab!"),
        "1:ab",
    ),
    "one that has missed a round keeps nothing": (
        scene(asks("a", 2), runs("b", 1), round="2:a", **OVER),
        "form 3:a",
    ),
    # -- the gone and the absent -----------------------------------------------------------------------------------
    "one that has left has the others meet again": (scene(runs("a", 1), round="1:ab", gone="b"), "1:ab!"),
    "one that left and had no seat does not": (scene(runs("a", 1), round="1:a", gone="b"), "nothing"),
    "one that has said goodbye and is still there gets no seat": (
        scene(asks("a", 1), asks("b", 1), round="1:ab!", gone="b", **OVER),
        "form 2:a",
    ),
    "nor does it keep the round": (
        scene(asks("a", 1), runs("b", 1), round="1:ab!", gone="b", **OVER),
        "form 2:a",
    ),
    "one that is merely absent does not stop the others": (scene(runs("a", 1), round="1:ab"), "nothing"),
    "the absent are not waited for": (scene(asks("a", 1), round="1:ab", **OVER), "form 2:a"),
    "but in trouble they may still run": (scene(asks("a", 1), round="1:ab", **OVER, **TROUBLE), "1:ab!"),
    "and hold the round until it is over": (scene(asks("a", 1), round="1:ab!", **OVER, **TROUBLE), "last call"),
    "in trouble their places are not given away": (
        scene(runs("a", 1), asks("c"), round="1:ab", **TROUBLE),
        "nothing",
    ),
    "in trouble the gone are gone all the same": (
        scene(asks("a", 1), round="1:ab", gone="b", **OVER, **TROUBLE),
        "form 2:a",
    ),
    # -- epochs ----------------------------------------------------------------------------------------------------
    "a closed epoch forms no round": (scene(asks("a", 1), asks("b", 1), round="1:ab!", closed=1), "nothing"),
    "nor has it one formed anew": (scene(runs("a", 1), asks("b", 1), round="1:ab", closed=1), "nothing"),
    "the next begins when all of it have left": (
        scene(asks("c", epoch=2), asks("d", epoch=2), round="4:ab", closed=1),
        "form 5:cd",
    ),
    "and not before": (
        scene(runs("a", 4), asks("c", epoch=2), asks("d", epoch=2), round="4:ab", closed=1, **OVER),
        "nothing",
    ),
    "its absent are not waited for, whatever the trouble": (
        scene(asks("c", epoch=2), asks("d", epoch=2), round="4:ab", closed=1, **TROUBLE),
        "form 5:cd",
    ),
    "a later epoch that etcd has lost is known by its nodes: no round begins beside them": (
        scene(runs("a", 5, epoch=2), asks("d"), **OVER),
        "nothing",
    ),
    "and who began an earlier one after that is not waited for: it has run nothing": (
        scene(asks("a", 5, epoch=2), asks("b", 5, epoch=2), asks("d")),
        "form 6:ab",
    ),
    # -- what etcd has lost or cannot be read ----------------------------------------------------------------------
    "numbers continue from what the nodes know": (scene(asks("a", 7), asks("b", 7)), "form 8:ab"),
    "a round that etcd has lost is not made up while a node runs in it": (scene(runs("a", 7), asks("b", 7)), "nothing"),
    "it is formed again when all have asked": (scene(asks("a", 7), asks("b", 7), **OVER), "form 8:ab"),
    "another version's round is left alone": (scene(asks("a"), asks("b"), readable=False, **OVER), "nothing"),
    "another version's node is refused": (scene(unreadable("x"), asks("a"), **OVER), "refuse x"),
    "and once only": (scene(unreadable("x"), asks("a"), refused="x", **OVER), "form 1:a"),
    # -- differing limits ------------------------------------------------------------------------------------------
    "who came first says how many": (scene(asks("a"), asks("b", nnodes="1:3"), **OVER), "refuse b"),
    "the refused has no seat": (scene(asks("a"), asks("b", nnodes="1:3"), refused="b", **OVER), "form 1:a"),
    "while a round stands its limits hold": (
        scene(asks("b", nnodes="1:3"), runs("a", 1), round="1:a"),
        "refuse b",
    ),
    "the refused does not have the round formed anew": (
        scene(asks("b", nnodes="1:3"), runs("a", 1), round="1:a", refused="b"),
        "nothing",
    ),
    "when nobody runs it is over with them": (
        scene(asks("b", nnodes="1:3"), round="1:a", **OVER),
        "form 2:b",
    ),
}


@pytest.mark.parametrize(("now", "expected"), TABLE.values(), ids=TABLE.keys())
def test_the_decision_in_each_situation(now: RendezvousSituation, expected: str) -> None:
    assert outcome(now) == expected


def _written(now: RendezvousSituation) -> WriteRound:
    action = decide(now)
    assert isinstance(action, WriteRound), action
    return action


def test_a_round_has_the_store_of_rank_0_and_the_limits_of_its_nodes() -> None:
    made = _written(scene(asks("b", 1), asks("a", 1), round="1:ab!")).round
    assert (made.store, made.limits) == (Address(host="host-a", port=ord("a")), limits("1:2"))
    assert made.seats == tuple(Seat(node=name, host=f"host-{name}", pid=ord(name)) for name in "ab")


@pytest.mark.parametrize(
    ("causes", "cause", "restarts"),
    [
        (("failure", "membership"), "failure", 4),
        (("membership", "failure"), "failure", 4),
        (("membership", "new"), "membership", 3),
        (("new", "new"), "new", 3),
    ],
)
def test_a_round_counts_as_a_restart_if_workers_of_any_node_failed(
    causes: tuple[Cause, Cause], cause: Cause, restarts: int
) -> None:
    now = scene(asks("a", 1, cause=causes[0]), asks("b", 1, cause=causes[1]), round="1:ab!")
    assert now.round is not None
    made = _written(replace(now, round=now.round.model_copy(update={"restarts": 3}))).round
    assert (made.cause, made.restarts) == (cause, restarts)


def test_an_epoch_begins_without_restarts() -> None:
    now = scene(asks("c", epoch=2), asks("d", epoch=2), round="4:ab", closed=1)
    assert now.round is not None
    made = _written(replace(now, round=now.round.model_copy(update={"restarts": 3}))).round
    assert (made.epoch, made.cause, made.restarts) == (2, "new", 0)


def test_a_new_round_deletes_departures_and_the_refusals_of_nodes_that_left() -> None:
    now = scene(unreadable("x"), asks("a", 1), asks("b", 1), round="1:ab!", gone="cd", refused="xy")
    assert set(_written(now).forget) == {"c", "d", "y"}


def test_marking_a_round_deletes_no_departure() -> None:
    assert _written(scene(runs("a", 1), round="1:ab", gone="b")).forget == ()


def test_each_refusal_says_what_to_do() -> None:
    other, differing = decide(scene(unreadable("x"))), decide(scene(asks("a"), asks("b", nnodes="1:3")))
    assert isinstance(other, RefuseNode)
    assert isinstance(differing, RefuseNode)
    assert "use the same version on all nodes" in other.reason
    assert "--nnodes=1:2" in differing.reason
    assert "--nnodes=1:3" in differing.reason


@pytest.mark.parametrize(
    ("round_epoch", "closed", "expected"), [(None, None, 1), (3, None, 3), (3, 2, 3), (3, 3, 4), (None, 3, 4)]
)
def test_a_new_node_begins_the_epoch_after_the_last_closed_one(
    round_epoch: int | None, closed: int | None, expected: int
) -> None:
    standing = Round(epoch=round_epoch, number=1, limits=limits("1:2")) if round_epoch else None
    assert epoch_of(standing, Closed(epoch=closed) if closed else None) == expected


def test_time_alone_changes_a_decision_only_while_etcd_is_unstable_and_a_node_is_absent() -> None:
    absent, all_there = scene(asks("a", 1), round="1:ab", **TROUBLE), scene(runs("a", 1), round="1:a", **TROUBLE)
    assert [round_status(now).waits_for_absent for now in (absent, replace(absent, etcd_stable=True), all_there)] == [
        True,
        False,
        False,
    ]


@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=8))
def test_staying_nodes_rank_before_new_ones_over_any_number_of_rounds(comings: list[set[str]]) -> None:
    now, before = scene(**OVER), ""
    for there in comings:
        number = now.round.number if now.round is not None else 0
        said = [asks(name, number if name in before else 0, nnodes="1:4") for name in sorted(there, reverse=True)]
        made = _written(replace(scene(*said, **OVER), round=now.round)).round
        names = "".join(seat.node for seat in made.seats)
        stayed = [name for name in before if name in there]
        assert len(names) == min(4, len(there))
        assert made.number == number + 1
        assert list(names[: len(stayed)]) == stayed
        now, before = replace(now, round=made), names
