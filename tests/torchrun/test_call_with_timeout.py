"""Calls with a time limit: which thread makes them, and what happens to one that does not come back."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch.distributed import DistStoreError  # noqa: E402

from instep.torch._rendezvous import round_store  # noqa: E402
from instep.torch._rendezvous.round_store import call_with_timeout  # noqa: E402


@pytest.fixture(autouse=True)
def no_threads_of_other_tests() -> None:
    round_store._idle.clear()


def test_a_caller_that_polls_uses_one_thread_for_all_its_calls() -> None:
    threads = {call_with_timeout(threading.get_ident, 10, "it") for _ in range(200)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_a_call_that_does_not_come_back_is_left_alone_and_the_next_one_gets_another_thread() -> None:
    release, ended = threading.Event(), threading.Event()

    def hang() -> None:
        release.wait()
        ended.set()

    with pytest.raises(DistStoreError, match=r"the store has not answered in 0\.05 s"):
        call_with_timeout(hang, 0.05, "the store")
    assert call_with_timeout(lambda: 7, 10, "the store") == 7
    assert len(round_store._idle) == 1
    release.set()
    assert ended.wait(10)


def test_what_a_call_raises_reaches_its_caller_and_the_thread_is_used_again() -> None:
    def fail() -> None:
        raise TimeoutError("of the call itself")

    with pytest.raises(TimeoutError, match="of the call itself"):
        call_with_timeout(fail, 10, "it")
    with pytest.raises(SystemExit):
        call_with_timeout(lambda: exec("raise SystemExit(3)"), 10, "it")
    assert call_with_timeout(lambda: 1, 10, "it") == 1
    assert len(round_store._idle) == 1


def test_callers_at_the_same_time_do_not_wait_for_each_other() -> None:
    both = threading.Barrier(2)
    other = threading.Thread(target=lambda: call_with_timeout(lambda: both.wait(10), 10, "it"))
    other.start()
    call_with_timeout(lambda: both.wait(10), 10, "it")
    other.join()
    assert len(round_store._idle) == 2


def test_an_idle_thread_keeps_nothing_of_its_last_call_alive() -> None:
    class Store:
        pass

    store = Store()
    gone = weakref.ref(store)
    call_with_timeout(lambda held=store: None, 10, "it")
    del store
    call_with_timeout(lambda: None, 10, "it")
    gc.collect()
    assert gone() is None


def test_a_forked_child_makes_threads_of_its_own() -> None:
    call_with_timeout(lambda: None, 10, "it")
    child = os.fork()
    if child == 0:
        os._exit(0 if call_with_timeout(lambda: 5, 10, "it") == 5 else 1)
    assert os.waitpid(child, 0)[1] == 0
