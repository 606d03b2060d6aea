"""Histories record what was done, and are read as they were recorded."""

from __future__ import annotations

import asyncio
import itertools
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from instep.errors import EtcdDenied, EtcdError, EtcdUnavailable, InstepError, LeaseLost, SettingsError
from instep.testing.checkers import (
    Accepted,
    Commit,
    ConfigRun,
    Desired,
    History,
    Hold,
    Operation,
    Reply,
    WatchEvent,
    WatchReceived,
    WatchStarted,
    may_have_happened,
)

RECORDS = (
    Operation("a", "put", "k", ("it's\n“quoted”",), Reply.wrote(7), 0.1 + 0.2, 1e9 + 1 / 3),
    Operation("a", "put", "k", (b"\x00\xff",), None, 1.5, None),
    Operation("a", "cas_revision", "k", (12, 1 << 70), Reply.refused(), 1.0, 2.0),
    Operation("a", "get", "k", (), Reply.found("\ud800", 3, revision=9), 1.0, 2.0),
    Operation("a", "get", "k", (), Reply.absent(), 1.0, 2.0),
    Hold("lock", "a", 4, 1.0, math.inf, None),
    Accepted("store", "a", 4),
    WatchStarted("w", "/a/", 5, relisted=True),
    WatchReceived("w", 6, (WatchEvent("put", "/a/1", 6, b"1"), WatchEvent("delete", "/a/2", 6)), progress=False),
    ConfigRun(3, 0, 10**12, "abc", life=2),
    Commit(4, 100, 77, (("lr", 1e-4), ("on", True), ("name", None)), life=1),
    Desired("lr", 5, 0.1, valid=False),
)


def ticking() -> History:
    return History(clock=itertools.count(1.0).__next__)


def test_every_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = History()
    for item in RECORDS:
        history.add(item)
    assert history.save(tmp_path / "kept.jsonl") == len(RECORDS)
    loaded = History.load(tmp_path / "kept.jsonl")
    assert tuple(loaded.records()) == RECORDS
    assert [type(value) for _, value in loaded.select(Commit)[0].values] == [float, bool, type(None)]


def test_a_history_in_a_file_is_written_at_once_and_not_kept_in_memory(tmp_path: Path) -> None:
    with History(tmp_path / "h.jsonl") as history:
        for count, item in enumerate(RECORDS, start=1):
            history.add(item)
            assert len(list(history.records())) == len(history) == count
    assert History.load(tmp_path / "h.jsonl").select(Hold) == [RECORDS[5]]
    with pytest.raises(SettingsError, match="closed"):
        history.add(RECORDS[0])


def test_a_last_line_cut_off_by_a_crash_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    with History(path) as history:
        history.add(RECORDS[0])
        history.add(RECORDS[1])
    path.write_text(path.read_text()[:-5])
    assert tuple(History.load(path).records()) == RECORDS[:1]


@pytest.mark.parametrize(
    "line", ["nonsense", '{"_":"Stranger"}', "{}", '{"_":"Hold","name":"x"}', "5", "null", "[1]", "[" * 100_000]
)
def test_a_line_that_is_not_a_record_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "h.jsonl").write_text(line + "\n")
    with pytest.raises(SettingsError, match="not a line of a history"):
        History.load(tmp_path / "h.jsonl")


def test_a_record_that_cannot_be_stored_is_refused_when_it_is_added() -> None:
    with pytest.raises(SettingsError, match="cannot keep a list"):
        History().add([1])


def test_a_full_history_raises_an_error_instead_of_leaving_a_gap() -> None:
    history = History(limit=1)
    history.add(RECORDS[0])
    with pytest.raises(SettingsError, match="full after 1 records"):
        history.add(RECORDS[1])
    assert len(history) == 1


def test_threads_lose_nothing(tmp_path: Path) -> None:
    with History(tmp_path / "h.jsonl") as history:

        def work(name: str) -> None:
            for number in range(500):
                history.add(Accepted("store", name, number))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = history.select(Accepted)
    assert len(found) == 2000
    assert all([a.token for a in found if a.holder == name] == list(range(500)) for name in "abcd")


def test_a_call_is_recorded_with_its_times_and_its_result() -> None:
    async def main() -> None:
        async with history.call("a", "create", "k", "v") as op:
            op.result = Reply.wrote(5)

    history = ticking()
    asyncio.run(main())
    with history.call("b", "put", "k", "w"):
        pass
    assert history.select(Operation) == [
        Operation("a", "create", "k", ("v",), Reply.wrote(5), 1.0, 2.0),
        Operation("b", "put", "k", ("w",), Reply.wrote(), 3.0, 4.0),
    ]


@pytest.mark.parametrize(
    ("error", "happened"),
    [
        (EtcdUnavailable("lost", applied_unknown=True), True),
        (EtcdUnavailable("refused", applied_unknown=False), False),
        (EtcdDenied("no"), False),
        (LeaseLost("gone", lease_id=1), False),
        (EtcdError("who knows"), True),
        (InstepError("who knows"), True),
        (asyncio.CancelledError(), True),
        (KeyboardInterrupt(), True),
    ],
)
def test_a_failed_write_stays_open_unless_it_certainly_was_not_done(error: BaseException, happened: bool) -> None:
    history = ticking()
    with pytest.raises(type(error)), history.call("a", "put", "k", "v"):
        raise error
    assert may_have_happened(error) is happened
    opened = [Operation("a", "put", "k", ("v",), None, 1.0, None)]
    assert history.select(Operation) == (opened if happened else [])


def test_a_failed_read_is_dropped() -> None:
    history = ticking()
    with pytest.raises(EtcdUnavailable), history.call("a", "get", "k"):
        raise EtcdUnavailable("lost", applied_unknown=True)
    assert len(history) == 0


def test_a_call_that_forgot_its_result_is_an_error_not_a_record() -> None:
    history = ticking()
    with pytest.raises(SettingsError, match=r"set op\.result"), history.call("a", "get", "k"):
        pass
    assert len(history) == 0


def test_operations_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError, match="takes"):
        Operation("a", "cas_value", "k", ("v",), None, 1.0, None)
    with pytest.raises(SettingsError, match="monotonic"):
        Operation("a", "get", "k", (), Reply.absent(), 2.0, 1.0)


def test_the_checkers_load_no_grpc_and_no_torch() -> None:
    code = "import sys, instep.testing.checkers; print([n for n in ('grpc', 'torch', 'asyncio') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_bytes(b"\x80\xff\n")
    with pytest.raises(SettingsError, match="not a line of a history"):
        History.load(tmp_path / "h.jsonl")


def test_a_history_does_not_overwrite_another(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").touch()
    with pytest.raises(SettingsError, match="exists already"):
        History(tmp_path / "h.jsonl")
