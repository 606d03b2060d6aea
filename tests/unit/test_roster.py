"""What an agent that comes after a crash may believe about the node's workers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from instep.agent.absentee import Absentee
from instep.agent.roster import RosterFile
from instep.agent.worker import LocalWorker
from instep.coordination.records import Member
from instep.coordination.schema import Schema
from unit.parts import SCHEMA, incarnation


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


def test_a_worker_that_lives_is_found_as_it_was(tmp_path: Path) -> None:
    roster = RosterFile(tmp_path / "roster")
    roster.save([worker(2, os.getpid(), view=7)])
    (found,) = loaded(roster)
    assert (found.rank, found.incarnation, found.view, found.absent) == (2, incarnation(2), 7, True)
    assert found.schema.digest == SCHEMA.digest
    assert found.record().view == 7


def test_only_those_that_train_are_kept(tmp_path: Path) -> None:
    """One that waits to join comes by itself, and one whose pid cannot be seen could not be watched."""
    roster = RosterFile(tmp_path / "roster")
    roster.save([worker(0, os.getpid(), view=0), worker(1, 0)])
    assert loaded(roster) == []


def test_a_process_that_has_ended_is_not_found_and_neither_is_another_one_with_its_pid(tmp_path: Path) -> None:
    roster = RosterFile(tmp_path / "roster")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        roster.save([worker(0, child.pid)])
        assert len(loaded(roster)) == 1
        child.kill()
    assert loaded(roster) == []
    roster.save([worker(0, os.getpid())])
    document = json.loads((tmp_path / "roster").read_text())
    document["workers"][0]["started"] -= 1
    (tmp_path / "roster").write_text(json.dumps(document))
    assert loaded(roster) == []


def test_a_roster_of_before_the_machine_started_or_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    roster = RosterFile(tmp_path / "roster")
    assert loaded(roster) == []
    roster.save([worker(0, os.getpid())])
    document = json.loads((tmp_path / "roster").read_text())
    for text in ("garbage", "[]", "{}", json.dumps({**document, "boot": "another"})):
        (tmp_path / "roster").write_text(text)
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


def test_a_worker_that_had_died_when_the_roster_was_written_is_not_found(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    roster = RosterFile(tmp_path / "roster")
    roster.save([worker(1, ended.pid)])
    assert loaded(roster) == []
