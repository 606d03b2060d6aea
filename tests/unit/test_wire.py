"""Messages between worker and agent, and their shared words."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import instep
from instep.wire import PROTOCOL
from instep.wire.codec import Document, WireError, from_json, to_json
from instep.wire.documents import Agreed, Directive, Plan
from instep.wire.frames import (
    MAX_MESSAGE_BYTES,
    Decoder,
    Words,
    _kinds,
    create_words,
    framed,
    from_agent,
    from_worker,
    receive_with_descriptor,
)
from instep.wire.messages import (
    DryRunResult,
    Failure,
    FromAgent,
    FromWorker,
    Hello,
    Inventory,
    Leave,
    MetricsReport,
    MissingRanks,
    Note,
    OtherHello,
    PlanApplied,
    PlanRefused,
    ProposePlan,
)
from unit.parts import agreed, manifest, plan

SOURCE = Path(instep.__file__).parent
TEXTS = st.text(st.characters())
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.dictionaries(TEXTS, SCALARS, max_size=3)
PLANS = st.builds(
    Plan,
    number=st.integers(min_value=1),
    view=st.integers(),
    gate=st.integers(),
    directive=st.none() | st.builds(Directive, ends_at=st.none() | st.integers(), reason=st.none() | TEXTS),
    checkpoint=st.none() | st.just(manifest(7)),
    values=VALUES,
    previous=VALUES,
    revision=st.integers(),
)
MESSAGES = st.lists(
    st.builds(Leave, clean=st.booleans(), step=st.integers(), error=TEXTS)
    | st.builds(PlanRefused, number=st.integers(), digest=TEXTS, problems=st.dictionaries(TEXTS, TEXTS, max_size=3))
    | st.builds(PlanApplied, number=st.integers(), digest=TEXTS, step=st.integers(), drift=st.none() | st.just(("lr",)))
    | st.builds(MetricsReport, metrics=st.dictionaries(TEXTS, st.floats(allow_nan=False), max_size=3))
    | st.builds(DryRunResult, number=st.integers(), refused=st.just(((4, {"lr": "too high"}),))),
    max_size=5,
)


def frame(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


@given(MESSAGES, st.data())
def test_messages_arrive_whole_and_in_order_however_bytes_are_split(
    messages: list[FromWorker], data: st.DataObject
) -> None:
    stream = b"".join(map(framed, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder(from_worker)
    arrived: list[FromWorker] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        arrived.extend(decoder.feed(stream[start:end]))
    assert arrived == messages
    assert not decoder.partial


@given(PLANS)
def test_a_plan_keeps_its_digest_and_the_kinds_of_its_values_on_the_way(item: Plan) -> None:
    (message,) = Decoder(from_agent).feed(framed(ProposePlan(item, agreed())))
    assert message == ProposePlan(item, agreed())
    assert isinstance(message, ProposePlan)
    assert message.plan.digest == item.digest
    assert [*map(type, message.plan.values.values())] == [*map(type, item.values.values())]


def test_a_message_sent_byte_by_byte_arrives_with_its_last_byte() -> None:
    decoder = Decoder(from_worker)
    *but_last, last = framed(Leave(True, 5))
    for byte in but_last:
        assert list(decoder.feed(bytes([byte]))) == []
        assert decoder.partial
    assert list(decoder.feed(bytes([last]))) == [Leave(True, 5)]
    assert not decoder.partial


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(WireError, match="over the limit"):
        framed(Note(1, "x" * MAX_MESSAGE_BYTES))


def test_the_largest_message_is_sent_and_received() -> None:
    message = Note(1, "x" * (MAX_MESSAGE_BYTES - len(framed(Note(1, ""))) + 4))
    assert list(Decoder(from_agent).feed(framed(message))) == [message]


def test_a_frame_over_the_limit_is_refused_before_its_body_comes() -> None:
    with pytest.raises(WireError, match="over the limit"):
        list(Decoder(from_worker).feed(struct.pack("!I", MAX_MESSAGE_BYTES + 1)))


@pytest.mark.parametrize("body", [b"", b"nonsense", b"{", b"\xff\xfe\xfd", b"[" * 100_000])
def test_a_frame_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="not JSON"):
        list(Decoder(from_worker).feed(frame(body)))


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"7", b'"t"', b'{"t": 5}', b'{"T": "x"}'])
def test_a_frame_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="no message"):
        list(Decoder(from_worker).feed(frame(body)))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"t": "leave", "clean": True}, "not a Leave: step is missing"),
        ({"t": "leave", "clean": 1, "step": 5}, "not a Leave: clean: 1 is not a bool"),
        ({"t": "leave", "clean": True, "step": True}, "not a Leave: step: True is not a int"),
        ({"t": "metricsreport", "metrics": []}, "not a MetricsReport: metrics: [] is not a "),
        (
            {"t": "commitcheckpoint", "candidate": "c", "manifest": {"id": "x"}},
            "not a CommitCheckpoint: manifest: step is missing",
        ),
        ({"t": "dryrunresult", "number": 1, "refused": [[1]]}, "not a DryRunResult: refused: "),
    ],
)
def test_a_message_that_does_not_fit_its_type_is_an_error_that_names_the_field(body: Any, problem: str) -> None:
    with pytest.raises(WireError) as caught:
        from_worker(json.dumps(body).encode())
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("field", ["id", "step", "layout"])
def test_a_manifest_without_a_checkpoint_id_cannot_be_read(field: str) -> None:
    damaged = {**to_json(manifest(7)), field: {"id": "a/b", "step": -1, "layout": "round"}[field]}
    with pytest.raises(WireError):
        from_json(type(manifest(7)), damaged)


def test_text_that_is_not_unicode_arrives_with_question_marks() -> None:
    """A file name in the text of an error, for example: etcd and logs need UTF-8."""
    sent = Leave(clean=False, step=1, error="OSError", text="no file 'a\udc80', no \U0001f600")
    body = json.dumps({"t": "leave", **to_json(sent)}).encode()
    assert from_worker(body) == Leave(False, 1, "OSError", "no file 'a?', no \U0001f600")


@pytest.mark.parametrize(("base", "reader"), [(FromWorker, "agent"), (FromAgent, "worker")])
def test_each_message_has_a_reader(base: type[Document], reader: str) -> None:
    sources = "".join(path.read_text() for path in (SOURCE / reader).glob("*.py"))
    assert [kind for kind in _kinds(base).values() if not re.search(rf"\b{kind.__name__}\b", sources)] == []


def test_fields_that_a_newer_version_adds_are_ignored() -> None:
    assert from_worker(b'{"t":"something new"}') is None
    assert from_worker(b'{"t":"leave","clean":true,"step":5,"new":[]}') == Leave(True, 5)


def test_a_run_paused_under_protocol_4_stays_paused() -> None:
    """Its directive was called `course`."""
    agreed = Agreed(plan=3, view=1, values={}, directive=Directive(paused_at=7))
    stored = agreed.encode().replace('"directive"', '"course"')
    assert "course" in stored
    assert Agreed.decode(stored) == agreed


def test_a_hello_of_any_protocol_is_read_and_answered_in_the_old_form() -> None:
    """The first protocol that had versions reads `t`, `kind` and `text` of the answer."""
    assert from_worker(b'{"t":"hello","protocol":3,"version":"0.0.9","rank":"?"}') == OtherHello("0.0.9")
    assert isinstance(from_worker(json.dumps({"t": "hello", "protocol": 1}).encode()), OtherHello)
    hello = Hello(rank=0, world_size=1, incarnation="a", host="h", pid=1)
    assert from_worker(framed(hello)[4:]) == hello
    assert isinstance(from_worker(framed(replace(hello, protocol=PROTOCOL + 1))[4:]), OtherHello)
    assert json.loads(framed(Failure("agent", "old"))[4:]) == {"t": "failure", "kind": "agent", "text": "old"}


def test_answers_keep_their_types() -> None:
    for message in (
        MissingRanks(3, (1, 2), {"x": (3,)}),
        Inventory(3, (manifest(7),), frozenset({"7-7"}), "7-7", True),
    ):
        assert from_agent(framed(message)[4:]) == message


def test_a_document_in_etcd_has_no_empty_fields() -> None:
    class Some(Document):
        a: int
        b: str | None = None
        c: dict[str, float | None] | None = None

    assert Some(1).encode() == '{"a":1}'
    assert Some(1, "ä", {"x": None}).encode() == '{"a":1,"b":"ä","c":{"x":null}}'
    assert Agreed.decode(agreed().encode()) == agreed()
    assert Plan.decode_or_none(plan().encode().replace('"number":1', '"number":0')) is None


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_messages_or_a_wire_error(chunks: list[bytes]) -> None:
    decoder = Decoder(from_worker)
    try:
        for chunk in chunks:
            assert all(isinstance(message, FromWorker) for message in decoder.feed(chunk))
    except WireError:
        return


# -- shared words --------------------------------------------------------------------------------------------------


@pytest.fixture
def both_ends() -> Iterator[tuple[Words, Words]]:
    """The worker's words, and the agent's on the same page."""
    worker, descriptor = create_words()
    agent = Words(os.dup(descriptor))
    os.close(descriptor)
    yield worker, agent
    worker.close()
    agent.close()


def test_the_shared_words_show_that_no_boundary_was_passed(both_ends: tuple[Words, Words]) -> None:
    worker, agent = both_ends
    assert (agent.step, agent.messages, agent.at, agent.beat) == (-1, 0, 0.0, 0.0)
    assert worker.messages == 0


def test_one_side_reads_what_the_other_writes(both_ends: tuple[Words, Words]) -> None:
    worker, agent = both_ends
    worker.integers[1] = 2**40
    worker.floats[2] = 12.5
    agent.count_message()
    agent.count_message()
    agent.set_beat(7.25)
    assert (agent.step, agent.at) == (2**40, 12.5)
    assert (worker.messages, worker.beat) == (2, 7.25)


def test_no_two_shared_words_overlap(both_ends: tuple[Words, Words]) -> None:
    worker, agent = both_ends
    agent.count_message()
    worker.integers[1] = 5
    worker.floats[2] = 1.5
    agent.set_beat(2.5)
    assert (agent.messages, agent.step, agent.at, agent.beat) == (1, 5, 1.5, 2.5)


def test_the_descriptor_of_the_words_does_not_leak_into_children() -> None:
    words, descriptor = create_words()
    assert not os.get_inheritable(descriptor)
    words.close()
    os.close(descriptor)


def test_a_descriptor_comes_with_the_bytes_it_was_sent_with() -> None:
    ours, theirs = socket.socketpair()
    words, descriptor = create_words()
    with ours, theirs:
        socket.send_fds(ours, [b"hello"], [descriptor])
        data, received = receive_with_descriptor(theirs, 100)
        assert data == b"hello"
        assert received is not None
        assert os.fstat(received).st_ino == os.fstat(descriptor).st_ino
        ours.send(b"more")
        assert receive_with_descriptor(theirs, 100) == (b"more", None)
    words.close()
    for each in (descriptor, received):
        os.close(each)


def test_of_several_descriptors_one_is_kept_and_the_rest_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    words, descriptor = create_words()
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [descriptor] * 3)
        _, received = receive_with_descriptor(theirs, 100)
    assert received is not None
    words.close()
    os.close(descriptor)
    os.close(received)
    assert len(os.listdir("/proc/self/fd")) == before
