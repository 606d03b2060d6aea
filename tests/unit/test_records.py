"""Documents in etcd, where any user may have written."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.protocol.records import (
    Ack,
    Agreed,
    Change,
    Decision,
    Forming,
    Leader,
    Left,
    Member,
    Metrics,
    NodeMembers,
    Plan,
    Receipt,
    Record,
    Refused,
    Rejected,
    Snapshot,
    View,
    format_ranks,
    parse_ranks,
)
from unit.parts import agreed, incarnation, left, plan, registered, view

RANKS = st.sets(st.integers(0, 3000), max_size=40)
DOCUMENTS: list[Record] = [
    registered(0, 10).member,
    view({"a": {0: 10, 2: 12}, "b": {1: 11}}, fresh=False),
    plan(3, lr=0.5, name="ünï", flag=True, nothing=None),
    Decision(commit=False, reason="late", by="a", step=7, refused={"lr": "no"}),
    agreed(gate=7, previous={"lr": 0.2}),
    Leader(node="a", rank=0, incarnation=incarnation(1), candidate="/k", token=7),
    Ack(node="a", ranks=(0, 1)),
    Receipt(node="a", steps={0: 12, 1: 12}),
    left(0, 1, last_step=9),
    Rejected(name="lr", value="x", revision=3, reason="no", by="fixed"),
    Refused(incarnation=incarnation(1), rank=0, reason="no"),
    Forming(world_size=4, missing="1-3"),
    Change(id="c", names=("lr",), author="me", reason="why"),
    Metrics(rank=0, step=7, step_time_s=0.1, metrics={"loss": 0.5}),
]
KINDS: list[type[Record]] = [type(document) for document in DOCUMENTS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_a_document_survives_a_round_trip_through_etcd(document: Record) -> None:
    assert type(document).decode(document.encode()) == document
    assert type(document).decode(document.encode().encode()) == document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_fields_of_a_newer_version_are_ignored(document: Record) -> None:
    newer = json.dumps({**json.loads(document.encode()), "from_the_future": [1, {"x": None}]})
    assert type(document).decode(newer) == document


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "text", [b"", b"nonsense", b"{", b"[]", b"null", b"7", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":1}']
)
def test_a_damaged_document_cannot_be_read(kind: type[Record], text: bytes) -> None:
    assert kind.decode_or_none(text) is None
    assert kind.decode_or_none(None) is None


@pytest.mark.parametrize("document", [plan(3, name="@"), agreed({"name": "@"})], ids=["plan", "agreed"])
@pytest.mark.parametrize("text", [b"\\ud800", b"\xed\xa0\x80"])
def test_a_document_with_a_lone_surrogate_cannot_be_read(document: Plan | Agreed, text: bytes) -> None:
    """It has no UTF-8 form, so no digest."""
    whole = document.encode().encode()
    assert whole.count(b"@") > 0
    assert type(document).decode_or_none(whole.replace(b"@", text)) is None
    assert type(document).decode_or_none(whole) == document


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_truncated_or_altered_document_is_read_or_is_none(kind: type[Record], data: st.DataObject) -> None:
    whole = bytearray(DOCUMENTS[KINDS.index(kind)].encode().encode())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    found = kind.decode_or_none(bytes(whole[: data.draw(st.integers(place, len(whole)))]))
    assert found is None or isinstance(found, kind)


@pytest.mark.parametrize(
    "nodes",
    [
        {"a": ["0-1", "0000000001x"]},
        {"a": ["0-1", "00000"]},
        {"a": ["0", ""]},
        {"a": ["1-0-1", "00000"]},
        {"a": ["x", "00000"]},
        {"a": ["0", 5]},
        {"a": "0-1"},
        {"a": None},
        [],
    ],
)
def test_a_view_with_a_damaged_node_cannot_be_read(nodes: object) -> None:
    document = {**json.loads(view({"a": {0: 1}}).encode()), "nodes": nodes}
    assert View.decode_or_none(json.dumps(document)) is None


def test_a_view_of_the_largest_run_fits_in_220_kilobytes() -> None:
    """With all its values four times, 256 KiB each, that is less than the 1.5 MiB that etcd takes."""
    nodes = {
        f"a-host-of-20-letters-{node:016x}": NodeMembers(
            ranks=tuple(range(8 * node, 8 * node + 8)),
            incarnations=tuple(incarnation(8 * node + rank) for rank in range(8)),
        )
        for node in range(1280)
    }
    largest = View(
        number=999,
        world_size=10_240,
        schema_digest="0" * 8,
        nodes=nodes,
        start=Snapshot(values={"lr": 0.1}),
        fresh=True,
    )
    text = largest.encode()
    assert len(text.encode()) < 220_000
    assert View.decode(text) == largest


def test_a_view_gives_incarnations_by_rank() -> None:
    assert view({"a": {0: 10, 2: 12}, "b": {1: 11}}).incarnations() == {
        0: incarnation(10),
        1: incarnation(11),
        2: incarnation(12),
    }


def test_a_plain_reader_finds_the_ranks_of_a_node() -> None:
    document = json.loads(view({"a": {0: 10, 1: 11, 5: 12}}).encode())
    assert document["nodes"]["a"][0] == "0-1,5"


@pytest.mark.parametrize(
    ("ranks", "text"),
    [((), ""), ((0,), "0"), ((0, 1), "0-1"), ((0, 1, 2, 3, 6), "0-3,6"), ((2, 4, 6), "2,4,6"), ((9, 1, 0), "0-1,9")],
)
def test_ranks_are_written_as_ranges(ranks: tuple[int, ...], text: str) -> None:
    assert format_ranks(ranks) == text
    assert parse_ranks(text) == tuple(sorted(ranks))


@given(RANKS, st.randoms(use_true_random=False))
def test_any_ranks_survive_a_round_trip(ranks: set[int], chance: random.Random) -> None:
    shuffled = list(ranks)
    chance.shuffle(shuffled)
    assert parse_ranks(format_ranks(shuffled)) == tuple(sorted(ranks))


@pytest.mark.parametrize("text", ["a", "-1", "1-", "1--2", "1-2-3", "1 2", "0x1", "99999999", "1;2", "٣", "1\n"])
def test_text_that_is_no_range_of_ranks_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a range of ranks"):
        parse_ranks(text)


def test_metrics_that_are_not_finite_do_not_stop_a_report() -> None:
    record = Metrics(rank=0, metrics={"loss": float("nan"), "norm": float("inf")})
    json.loads(record.encode())
    assert Metrics.decode_or_none(record.encode()) is not None


@pytest.mark.parametrize(
    "change",
    [{"rank": -1}, {"world_size": 0}, {"incarnation": "a/b"}, {"incarnation": ""}, {"node": "a/b"}, {"pid": "x"}],
)
def test_a_registration_that_could_leave_its_prefix_cannot_be_read(change: dict[str, object]) -> None:
    document = {**json.loads(registered(0, 10).member.encode()), **change}
    assert Member.decode_or_none(json.dumps(document)) is None


def test_records_are_frozen() -> None:
    record = Left(view=1, ranks=())
    with pytest.raises(ValueError, match="frozen"):
        record.view = 2


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5), st.floats() | st.integers() | st.booleans() | st.none(), max_size=4
    )
)
def test_agreed_values_keep_their_type(values: dict[str, Any]) -> None:
    finite = {name: value for name, value in values.items() if value == value and abs(value or 0) != float("inf")}
    back = Agreed.decode(Agreed(plan=1, view=1, values=finite).encode()).values
    assert back == finite
    assert {name: type(value) for name, value in back.items()} == {name: type(value) for name, value in finite.items()}


def test_a_plan_keeps_whole_numbers_and_floats_apart() -> None:
    back = Plan.decode(plan(lr=1.0, batch=1, flag=True).encode()).values
    assert [type(back[name]) for name in ("lr", "batch", "flag")] == [float, int, bool]
