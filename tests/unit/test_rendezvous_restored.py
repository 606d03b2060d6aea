"""What a node writes back of torchrun's rendezvous if etcd shows another history than the node has seen."""

from __future__ import annotations

import pytest

from instep.rendezvous.decision import lost_close, lost_round
from instep.rendezvous.records import Address, Closed, Limits, Round, Seat


def round_of(nodes: str, number: int, *, epoch: int = 1, port: int | None = None) -> Round:
    seats = tuple(Seat(node=node, host=node, pid=1) for node in nodes)
    store = Address(host="h", port=port if port is not None else number)
    return Round(epoch=epoch, number=number, limits=Limits(min_nodes=1, max_nodes=2), seats=seats, store=store)


def closed(epoch: int) -> Closed:
    return Closed(epoch=epoch)


CASES: dict[str, tuple[Round | None, Closed | None, Round | None, Closed | None, Round | None]] = {
    "without a known round nothing is written": (None, None, round_of("ab", 3), closed(1), None),
    "etcd shows nothing": (round_of("ab", 5), None, None, None, round_of("ab", 5)),
    "etcd shows an older round": (round_of("ab", 5), None, round_of("ab", 4), None, round_of("ab", 5)),
    "etcd shows the known round": (round_of("ab", 5), None, round_of("ab", 5), None, None),
    "etcd shows the known round with another number, because it was written back": (
        round_of("ab", 5),
        None,
        round_of("ab", 41, epoch=4, port=5),
        closed(3),
        None,
    ),
    "etcd shows a later round of the same nodes": (round_of("ab", 5), None, round_of("bc", 6), None, None),
    "etcd shows a round with the same number that other nodes have formed": (
        round_of("ab", 5),
        None,
        round_of("c", 5, port=9),
        None,
        round_of("ab", 6, port=5),
    ),
    "etcd shows another run with the same name, which has ended": (
        round_of("ab", 5),
        None,
        round_of("x", 40, epoch=3),
        closed(3),
        round_of("ab", 41, epoch=4, port=5),
    ),
    "etcd shows only the end of such a run": (
        round_of("ab", 5),
        None,
        None,
        closed(3),
        round_of("ab", 5, epoch=4),
    ),
    "a second run with the name keeps its epoch": (
        round_of("ab", 5, epoch=2),
        closed(1),
        round_of("x", 2),
        None,
        round_of("ab", 5, epoch=2),
    ),
    "a round of an ended epoch keeps its number": (round_of("ab", 5), closed(1), None, None, round_of("ab", 5)),
    "a round of an ended epoch is not written over a later one": (
        round_of("ab", 5),
        closed(1),
        round_of("x", 40),
        None,
        None,
    ),
}


@pytest.mark.parametrize(("known", "known_closed", "shown", "shown_closed", "written"), CASES.values(), ids=CASES)
def test_the_round_that_is_written_back(
    known: Round | None,
    known_closed: Closed | None,
    shown: Round | None,
    shown_closed: Closed | None,
    written: Round | None,
) -> None:
    assert lost_round(known, known_closed, shown, shown_closed) == written


@pytest.mark.parametrize("case", CASES)
def test_the_round_that_was_written_back_is_then_known(case: str) -> None:
    known, known_closed, shown, shown_closed, written = CASES[case]
    now_closed = lost_close(known_closed, shown_closed) or shown_closed
    assert lost_round(known, known_closed, written or shown, now_closed) is None


def test_a_closed_epoch_is_written_back_if_etcd_shows_an_earlier_one() -> None:
    assert lost_close(closed(2), None) == lost_close(closed(2), closed(1)) == closed(2)
    assert lost_close(closed(2), closed(2)) is lost_close(closed(2), closed(3)) is lost_close(None, None) is None
