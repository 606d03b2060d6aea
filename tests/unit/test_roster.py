"""What an agent that comes after a crash may believe about the node's workers."""

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

from instep.agent.absentee import Absentee
from instep.agent.roster import RosterFile
from instep.agent.stall import nominate
from instep.agent.worker import LocalWorker
from instep.coordination.records import Member, WorkerId
from instep.coordination.schema import Schema
from instep.runtime import RuntimeFolder
from unit.parts import SCHEMA, incarnation


@pytest.fixture
def folder(runtime_dir: Path) -> RuntimeFolder:
    return RuntimeFolder(runtime_dir / "run")


class Somebody:
    """A connection, as far as a roster looks at it."""

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


def loaded(roster: RosterFile) -> list[LocalWorker]:
    async def load() -> list[LocalWorker]:
        found = roster.load("a", lambda connection: None)
        for item in found:
            item.connection.close()
        return found

    return asyncio.run(load())


def test_a_worker_that_lives_is_found_as_it_was(folder: RuntimeFolder) -> None:
    roster = RosterFile(folder)
    roster.save([worker(2, os.getpid(), view=7)])
    (found,) = loaded(roster)
    assert (found.rank, found.id, found.view, found.absent) == (2, WorkerId(2, incarnation(2)), 7, True)
    assert found.schema.digest == SCHEMA.digest
    assert found.record().view == 7


def test_a_leader_that_connects_after_another_rank_loses_no_lead_to_it(folder: RuntimeFolder) -> None:
    """Before a worker has connected nobody knows when it passed its last boundary: that is no stall."""
    RosterFile(folder).save([worker(0, os.getpid()), worker(1, os.getpid())])
    leader, other = (item.standing() for item in loaded(RosterFile(folder)))
    now = time.monotonic()
    named = nominate(None, [leader, other], now, timeout_s=1.0, leads=False, rivals=False)
    assert named is not None
    assert named.worker == leader.id
    connected = [leader, replace(other, at=now)]
    assert nominate(named, connected, now, timeout_s=1.0, leads=True, rivals=False) == named


def test_only_those_that_train_are_kept(folder: RuntimeFolder) -> None:
    """One that waits to join comes by itself, and one whose pid cannot be seen could not be watched."""
    roster = RosterFile(folder)
    roster.save([worker(0, os.getpid(), view=0), worker(1, 0)])
    assert loaded(roster) == []


def test_a_process_that_has_ended_is_not_found_and_neither_is_another_one_with_its_pid(folder: RuntimeFolder) -> None:
    roster = RosterFile(folder)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        roster.save([worker(0, child.pid)])
        assert len(loaded(roster)) == 1
        child.kill()
    assert loaded(roster) == []
    roster.save([worker(0, os.getpid())])
    document = json.loads(folder.roster.read_text())
    document["workers"][0]["started"] -= 1
    folder.roster.write_text(json.dumps(document))
    assert loaded(roster) == []


def test_a_roster_of_before_the_machine_started_or_that_cannot_be_read_is_none(folder: RuntimeFolder) -> None:
    roster = RosterFile(folder)
    assert loaded(roster) == []
    roster.save([worker(0, os.getpid())])
    document = json.loads(folder.roster.read_text())
    for text in ("garbage", "[]", "{}", json.dumps({**document, "place": "another"})):
        folder.roster.write_text(text)
        assert loaded(roster) == []


def test_the_end_of_an_absent_worker_is_noticed() -> None:
    async def follow(child: subprocess.Popen[bytes]) -> None:
        died = asyncio.Event()
        absentee = Absentee(child.pid, lambda connection: died.set())
        assert not absentee.closed
        child.kill()
        async with asyncio.timeout(10):
            await died.wait()
        assert absentee.closed

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        asyncio.run(follow(child))


def test_a_worker_that_had_died_when_the_roster_was_written_is_not_found(folder: RuntimeFolder) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    roster = RosterFile(folder)
    roster.save([worker(1, ended.pid)])
    assert loaded(roster) == []


def test_a_roster_in_a_copy_of_the_folder_tells_of_another_node_and_is_none(
    folder: RuntimeFolder, runtime_dir: Path
) -> None:
    RosterFile(folder).save([worker(0, os.getpid())])
    shutil.copytree(folder.path, runtime_dir / "copy")
    assert loaded(RosterFile(RuntimeFolder(runtime_dir / "copy"))) == []
    assert len(loaded(RosterFile(folder))) == 1
