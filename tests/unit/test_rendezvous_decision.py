"""The coordinator's next action: each row of a table is a situation and its outcome.

Nodes are listed in the order of their arrival. `asks("a")` wants its first round, `asks("a", 1)` was in round 1 and
wants the next, `runs("a", 1)` runs in round 1. A current round is its number and its nodes by rank.
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
    """`round` is "2:ab", or "2:ab!" if it is marked to be formed again; `closed` an epoch."""
    current = None
    if round:
        number, _, names = round.rstrip("!").partition(":")
        seats = tuple(Seat(node=name, host=f"host-{name}", pid=ord(name)) for name in names)
        current = Round(epoch=epoch, number=int(number), limits=limits(nnodes), seats=seats, wanted=round.endswith("!"))
    return RendezvousSituation(
        nodes=tuple(
            RegisteredNode(said.name, 100 + place, said.registration)
            for place, said in enumerate(nodes)
            if said.registration is not None
        ),
        unreadable=frozenset(said.name for said in nodes if said.registration is None),
        round=current,
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
    # -- forming a round -------------------------------------------------------------------------------------------
    "a round with max_nodes is formed at once": (scene(asks("a"), asks("b")), "form 1:ab"),
    "min_nodes begin a last call": (scene(asks("a")), "last call"),
    "after the last call min_nodes are enough": (scene(asks("a"), **OVER), "form 1:a"),
    "below min_nodes no round is formed": (scene(asks("a", nnodes="2:3"), **OVER), "nothing"),
    "of more than max_nodes the latest get no seat": (
        scene(asks("c"), asks("a"), asks("b")),
        "form 1:ca",
    ),
    "a spare ranks after nodes that had a seat, however early it registered": (
        scene(asks("s"), asks("b", 1), asks("a", 1), round="1:ab!"),
        "form 2:ab",
    ),
    "a spare replaces a node that has left": (
        scene(asks("s"), asks("b", 1), round="1:ab!", gone="a"),
        "form 2:bs",
    ),
    # -- while workers run -----------------------------------------------------------------------------------------
    "a running node keeps the round, whatever the clock says": (
        scene(runs("a", 1), asks("b", 1), round="1:ab!", **OVER),
        "last call",
    ),
    "a node that was just seated counts as running before it registers that": (
        scene(asks("a"), asks("b"), round="1:ab"),
        "nothing",
    ),
    "a node that asks again causes a new round": (
        scene(runs("a", 1), asks("b", 1), round="1:ab"),
        "1:ab!",
    ),
    "a newcomer causes a new round if there is room": (scene(runs("a", 1), asks("b"), round="1:a"), "1:a!"),
    "a spare causes no new round": (scene(runs("a", 1), runs("b", 1), asks("c"), round="1:ab"), "nothing"),
    "a spare clears the mark that another node caused": (
        scene(runs("a", 1), runs("b", 1), asks("c"), round="1:ab!"),
        "1:ab",
    ),
    "a node that has missed a round keeps no seat": (
        scene(asks("a", 2), runs("b", 1), round="2:a", **OVER),
        "form 3:a",
    ),
    # -- departed and absent nodes -----------------------------------------------------------------------------------
    "a node that has left causes a new round": (scene(runs("a", 1), round="1:ab", gone="b"), "1:ab!"),
    "a node that left without a seat does not": (scene(runs("a", 1), round="1:a", gone="b"), "nothing"),
    "a node that has left but is still registered gets no seat": (
        scene(asks("a", 1), asks("b", 1), round="1:ab!", gone="b", **OVER),
        "form 2:a",
    ),
    "a node that has left does not keep the round": (
        scene(asks("a", 1), runs("b", 1), round="1:ab!", gone="b", **OVER),
        "form 2:a",
    ),
    "an absent node does not stop the others": (scene(runs("a", 1), round="1:ab"), "nothing"),
    "a round does not wait for absent nodes": (scene(asks("a", 1), round="1:ab", **OVER), "form 2:a"),
    "while etcd is unstable absent nodes may still run": (
        scene(asks("a", 1), round="1:ab", **OVER, **TROUBLE),
        "1:ab!",
    ),
    "while etcd is unstable absent nodes hold the round": (
        scene(asks("a", 1), round="1:ab!", **OVER, **TROUBLE),
        "last call",
    ),
    "while etcd is unstable the seats of absent nodes are kept": (
        scene(runs("a", 1), asks("c"), round="1:ab", **TROUBLE),
        "nothing",
    ),
    "while etcd is unstable nodes that have left stay out": (
        scene(asks("a", 1), round="1:ab", gone="b", **OVER, **TROUBLE),
        "form 2:a",
    ),
    # -- epochs ----------------------------------------------------------------------------------------------------
    "a closed epoch forms no round": (scene(asks("a", 1), asks("b", 1), round="1:ab!", closed=1), "nothing"),
    "a closed epoch forms no further round": (scene(runs("a", 1), asks("b", 1), round="1:ab", closed=1), "nothing"),
    "the next epoch begins when all nodes of the last one have left": (
        scene(asks("c", epoch=2), asks("d", epoch=2), round="4:ab", closed=1),
        "form 5:cd",
    ),
    "the next epoch does not begin before": (
        scene(runs("a", 4), asks("c", epoch=2), asks("d", epoch=2), round="4:ab", closed=1, **OVER),
        "nothing",
    ),
    "a new epoch does not wait for absent nodes of the last one": (
        scene(asks("c", epoch=2), asks("d", epoch=2), round="4:ab", closed=1, **TROUBLE),
        "form 5:cd",
    ),
    "no round begins beside nodes of an epoch that etcd has lost": (
        scene(runs("a", 5, epoch=2), asks("d"), **OVER),
        "nothing",
    ),
    "a round of a lost epoch does not wait for a node of an earlier one that has run nothing": (
        scene(asks("a", 5, epoch=2), asks("b", 5, epoch=2), asks("d")),
        "form 6:ab",
    ),
    # -- what etcd has lost or cannot be read ----------------------------------------------------------------------
    "numbers continue from what the nodes know": (scene(asks("a", 7), asks("b", 7)), "form 8:ab"),
    "a round that etcd has lost is not replaced while a node runs in it": (
        scene(runs("a", 7), asks("b", 7)),
        "nothing",
    ),
    "a lost round is formed again when all nodes have asked": (scene(asks("a", 7), asks("b", 7), **OVER), "form 8:ab"),
    "another version's round is left alone": (scene(asks("a"), asks("b"), readable=False, **OVER), "nothing"),
    "another version's node is refused": (scene(unreadable("x"), asks("a"), **OVER), "refuse x"),
    "another version's node is refused once": (scene(unreadable("x"), asks("a"), refused="x", **OVER), "form 1:a"),
    # -- differing limits ------------------------------------------------------------------------------------------
    "the first node sets the limits": (scene(asks("a"), asks("b", nnodes="1:3"), **OVER), "refuse b"),
    "a refused node gets no seat": (scene(asks("a"), asks("b", nnodes="1:3"), refused="b", **OVER), "form 1:a"),
    "the limits of a current round apply": (
        scene(asks("b", nnodes="1:3"), runs("a", 1), round="1:a"),
        "refuse b",
    ),
    "a refused node causes no new round": (
        scene(asks("b", nnodes="1:3"), runs("a", 1), round="1:a", refused="b"),
        "nothing",
    ),
    "the limits of a round end with its nodes": (
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
    current = Round(epoch=round_epoch, number=1, limits=limits("1:2")) if round_epoch else None
    assert epoch_of(current, Closed(epoch=closed) if closed else None) == expected


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
