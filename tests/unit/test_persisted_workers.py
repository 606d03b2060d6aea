"""What an agent that starts after a crash may assume about the node's workers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from instep.agent.connection import DisconnectedWorker
from instep.agent.persisted_workers import MOST_LINES, PersistedWorkersFile
from instep.agent.stall import nominate
from instep.agent.workers import LocalWorker
from instep.protocol.records import Member, WorkerId
from instep.protocol.schema import Schema
from instep.runtime import RuntimeFolder
from unit.parts import SCHEMA, incarnation


@pytest.fixture
def folder(runtime_dir: Path) -> RuntimeFolder:
    return RuntimeFolder(runtime_dir / "run")


class Somebody:
    """A connection, as far as the file of workers needs it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


def worker(rank: int, pid: int, *, view: int = 1) -> LocalWorker:
    member = Member(
        rank=rank,
        world_size=4,
        incarnation=incarnation(rank),
        node="a",
        host="h",
        pid=pid,
        schema_digest=SCHEMA.digest,
    )
    return LocalWorker(member, Schema(SCHEMA.document), cast(Any, Somebody(pid)), view=view)


def loaded(persisted_workers: PersistedWorkersFile) -> list[LocalWorker]:
    async def load() -> list[LocalWorker]:
        found = persisted_workers.load("a", lambda connection: None)
        for item in found:
            item.connection.close()
        return found

    return asyncio.run(load())


def test_a_living_worker_is_loaded_as_it_was_saved(folder: RuntimeFolder) -> None:
    persisted_workers = PersistedWorkersFile(folder)
    persisted_workers.save([worker(2, os.getpid(), view=7)])
    (found,) = loaded(persisted_workers)
    assert (found.rank, found.id, found.view, found.absent) == (2, WorkerId(2, incarnation(2)), 7, True)
    assert found.schema.digest == SCHEMA.digest
    assert found.record().view == 7


def test_a_leader_that_connects_after_another_rank_keeps_the_lead(folder: RuntimeFolder) -> None:
    """Before a worker has connected, the time of its last boundary is unknown, so it has not stalled."""
    PersistedWorkersFile(folder).save([worker(0, os.getpid()), worker(1, os.getpid())])
    leader, other = (item.progress() for item in loaded(PersistedWorkersFile(folder)))
    now = time.monotonic()
    named = nominate(None, [leader, other], now, timeout_s=1.0, leads=False, rivals=False)
    assert named is not None
    assert named.worker == leader.id
    connected = [leader, replace(other, at=now)]
    assert nominate(named, connected, now, timeout_s=1.0, leads=True, rivals=False) == named


def test_text_in_any_script_is_kept_whatever_the_locale(folder: RuntimeFolder) -> None:
    """An agent inherits the locale of a training, and a schema may contain text without a UTF-8 form."""
    persisted_workers = PersistedWorkersFile(folder)
    kept = worker(0, os.getpid())
    kept.schema = Schema({**(SCHEMA.document or {}), "description": "3e-4 → 1e-4 \ud800"})
    persisted_workers.save([kept])
    assert folder.persisted_workers.read_bytes().isascii()
    assert [item.schema.document for item in loaded(persisted_workers)] == [kept.schema.document]


def test_only_training_workers_are_saved(folder: RuntimeFolder) -> None:
    """A worker that waits to join reconnects itself, and one whose process is invisible could not be watched."""
    persisted_workers = PersistedWorkersFile(folder)
    persisted_workers.save([worker(0, os.getpid(), view=0), worker(1, 0)])
    assert loaded(persisted_workers) == []


def test_a_process_that_has_ended_is_not_found_and_neither_is_another_one_with_its_pid(folder: RuntimeFolder) -> None:
    persisted_workers = PersistedWorkersFile(folder)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        persisted_workers.save([worker(0, child.pid)])
        assert len(loaded(persisted_workers)) == 1
        child.kill()
    assert loaded(persisted_workers) == []
    persisted_workers.save([worker(0, os.getpid())])
    document = json.loads(folder.persisted_workers.read_text().splitlines()[-1])
    document["workers"][0]["started"] -= 1
    folder.persisted_workers.write_text(json.dumps(document) + "\n")
    assert loaded(persisted_workers) == []


def test_a_file_from_before_a_reboot_or_an_unreadable_one_is_ignored(folder: RuntimeFolder) -> None:
    persisted_workers = PersistedWorkersFile(folder)
    assert loaded(persisted_workers) == []
    persisted_workers.save([worker(0, os.getpid())])
    document = json.loads(folder.persisted_workers.read_text().splitlines()[-1])
    for text in ("garbage", "[]", "{}", json.dumps({**document, "place": "another"})):
        folder.persisted_workers.write_text(text + "\n")
        assert loaded(persisted_workers) == []


def test_an_agent_killed_while_it_appended_a_line_leaves_the_line_before(folder: RuntimeFolder) -> None:
    persisted_workers = PersistedWorkersFile(folder)
    for view in (7, 8):
        persisted_workers.save([worker(2, os.getpid(), view=view)])
    text = folder.persisted_workers.read_bytes()
    assert text.count(b"\n") == 2
    folder.persisted_workers.write_bytes(text[:-5])
    (found,) = loaded(persisted_workers)
    assert found.view == 7


def test_a_removed_folder_ends_no_agent(folder: RuntimeFolder, caplog: pytest.LogCaptureFixture) -> None:
    persisted_workers = PersistedWorkersFile(folder)
    persisted_workers.save([worker(2, os.getpid())])
    shutil.rmtree(folder.path)
    persisted_workers.save([worker(2, os.getpid())])
    assert "cannot be written" in caplog.text


def test_the_file_stays_short_and_is_written_again_when_it_was_removed(folder: RuntimeFolder) -> None:
    persisted_workers = PersistedWorkersFile(folder)
    for view in range(1, 3 * MOST_LINES):
        persisted_workers.save([worker(2, os.getpid(), view=view)])
        assert [item.view for item in loaded(persisted_workers)] == [view]
    assert folder.persisted_workers.read_bytes().count(b"\n") <= MOST_LINES + 1
    folder.persisted_workers.unlink()
    persisted_workers.save([worker(2, os.getpid(), view=9)])
    assert [item.view for item in loaded(PersistedWorkersFile(folder))] == [9]


def test_the_end_of_an_absent_worker_is_noticed() -> None:
    async def follow(child: subprocess.Popen[bytes]) -> None:
        died = asyncio.Event()
        absentee = DisconnectedWorker(child.pid, lambda connection: died.set())
        assert not absentee.closed
        child.kill()
        async with asyncio.timeout(10):
            await died.wait()
        assert absentee.closed

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        asyncio.run(follow(child))


def test_a_worker_that_had_died_when_the_file_was_written_is_not_loaded(folder: RuntimeFolder) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    persisted_workers = PersistedWorkersFile(folder)
    persisted_workers.save([worker(1, ended.pid)])
    assert loaded(persisted_workers) == []


def test_a_file_in_a_copied_folder_is_another_nodes_and_ignored(folder: RuntimeFolder, runtime_dir: Path) -> None:
    PersistedWorkersFile(folder).save([worker(0, os.getpid())])
    shutil.copytree(folder.path, runtime_dir / "copy")
    assert loaded(PersistedWorkersFile(RuntimeFolder(runtime_dir / "copy"))) == []
    assert len(loaded(PersistedWorkersFile(folder))) == 1
