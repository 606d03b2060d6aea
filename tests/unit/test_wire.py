"""Messages between worker and agent, and the words they share."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.wire import (
    MAX_MESSAGE_BYTES,
    Decoder,
    Message,
    WireError,
    Words,
    create_words,
    encode,
    receive_with_descriptor,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=3).map(lambda more: {**more, "t": "some"}), max_size=5
)


def framed(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


@given(MESSAGES, st.data())
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(
    messages: list[Message], data: st.DataObject
) -> None:
    stream = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder()
    arrived: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        arrived.extend(decoder.feed(stream[start:end]))
    assert arrived == messages
    assert not decoder.partial


def test_a_message_byte_by_byte_is_there_with_its_last_byte() -> None:
    decoder = Decoder()
    *but_last, last = encode({"t": "hello"})
    for byte in but_last:
        assert list(decoder.feed(bytes([byte]))) == []
        assert decoder.partial
    assert list(decoder.feed(bytes([last]))) == [{"t": "hello"}]
    assert not decoder.partial


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(WireError, match="over the limit"):
        encode({"t": "x" * MAX_MESSAGE_BYTES})


def test_the_largest_message_is_sent_and_heard() -> None:
    message = {"t": "x" * (MAX_MESSAGE_BYTES - len(encode({"t": ""})) + 4)}
    assert list(Decoder().feed(encode(message))) == [message]


def test_a_frame_over_the_limit_is_refused_before_its_body_comes() -> None:
    with pytest.raises(WireError, match="over the limit"):
        list(Decoder().feed(struct.pack("!I", MAX_MESSAGE_BYTES + 1)))


@pytest.mark.parametrize("body", [b"", b"nonsense", b"{", b"\xff\xfe\xfd", b"[" * 100_000])
def test_a_frame_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="no JSON"):
        list(Decoder().feed(framed(body)))


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"7", b'"t"', b'{"t": 5}', b'{"T": "x"}'])
def test_a_frame_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="no message"):
        list(Decoder().feed(framed(body)))


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_whatever_comes_it_is_messages_or_a_wire_error(chunks: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for chunk in chunks:
            for message in decoder.feed(chunk):
                json.dumps(message)
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


def test_before_the_first_boundary_the_words_say_so(both_ends: tuple[Words, Words]) -> None:
    worker, agent = both_ends
    assert (agent.step, agent.mail, agent.at, agent.beat) == (-1, 0, 0.0, 0.0)
    assert worker.mail == 0


def test_what_one_side_writes_the_other_reads(both_ends: tuple[Words, Words]) -> None:
    worker, agent = both_ends
    worker.integers[1] = 2**40
    worker.floats[2] = 12.5
    agent.count_mail()
    agent.count_mail()
    agent.set_beat(7.25)
    assert (agent.step, agent.at) == (2**40, 12.5)
    assert (worker.mail, worker.beat) == (2, 7.25)


def test_no_word_lies_on_another(both_ends: tuple[Words, Words]) -> None:
    worker, agent = both_ends
    agent.count_mail()
    worker.integers[1] = 5
    worker.floats[2] = 1.5
    agent.set_beat(2.5)
    assert (agent.mail, agent.step, agent.at, agent.beat) == (1, 5, 1.5, 2.5)


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
