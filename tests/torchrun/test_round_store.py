"""The nodes of a round meet in its store: all go on together, or none does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import PrefixStore

from instep.rendezvous.records import Address
from instep.torch._rendezvous.round_store import await_all_nodes, connect_store, open_store

pytestmark = pytest.mark.torch

PREFIX = "agents"


def test_who_comes_after_another_has_given_up_does_not_go_on() -> None:
    """It would wait for the one that has gone, and torchrun ends the agent over that."""
    store = open_store("127.0.0.1", 10.0)
    guest = connect_store(Address(host="127.0.0.1", port=store.port), 10.0, 10.0)
    assert not await_all_nodes(PrefixStore(PREFIX, store), 2, is_over=lambda: True, timeout_s=30.0)
    assert not await_all_nodes(PrefixStore(PREFIX, guest), 2, is_over=lambda: False, timeout_s=30.0)


def test_who_waits_is_told_at_once_that_another_has_given_up() -> None:
    store = open_store("127.0.0.1", 10.0)
    guest = connect_store(Address(host="127.0.0.1", port=store.port), 10.0, 10.0)
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(await_all_nodes, PrefixStore(PREFIX, guest), 3, is_over=lambda: False, timeout_s=30.0)
        assert not await_all_nodes(PrefixStore(PREFIX, store), 3, is_over=lambda: True, timeout_s=30.0)
        assert not waits.result(5.0)


def test_all_go_on_when_the_last_has_come() -> None:
    store = open_store("127.0.0.1", 10.0)
    guest = connect_store(Address(host="127.0.0.1", port=store.port), 10.0, 10.0)
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(await_all_nodes, PrefixStore(PREFIX, guest), 2, is_over=lambda: False, timeout_s=30.0)
        assert await_all_nodes(PrefixStore(PREFIX, store), 2, is_over=lambda: False, timeout_s=30.0)
        assert waits.result(5.0)
