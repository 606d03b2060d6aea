"""What torchrun gives a worker is in the registration, and no value of it can keep a worker out."""

from __future__ import annotations

from typing import Any, cast

import pytest

from instep.agent.workers import LocalWorker
from instep.protocol.records import Elastic, Member
from instep.wire.messages import Hello
from instep.worker.place import elastic

TORCHRUN = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_RANK": "5"}


def _registered(given: Elastic | None) -> Member:
    hello = Hello(rank=0, world_size=1, incarnation="abcde", host="h", pid=1, elastic=given)
    record = LocalWorker.from_hello(hello, "node", cast(Any, None)).record()
    return Member.decode(record.encode())


def test_the_registration_holds_restarts_and_place() -> None:
    member = _registered(elastic(TORCHRUN))
    assert member.elastic == Elastic(restarts=1, max_restarts=3, group_rank=5)


@pytest.mark.parametrize(("given", "kept"), [("job-7", "job-7"), ("none", ""), ("", ""), ("x" * 300, "x" * 128)])
def test_the_registration_holds_a_valid_torchrun_job_id(given: str, kept: str) -> None:
    member = _registered(elastic({**TORCHRUN, "TORCHELASTIC_RUN_ID": given}))
    assert member.elastic is not None
    assert member.elastic.run_id == kept


def test_a_worker_without_torchrun_or_of_an_older_version_has_none() -> None:
    assert elastic({"GROUP_RANK": "5"}) is None
    assert _registered(None).elastic is None


@pytest.mark.parametrize("text", ["", "-1", "one", "1.5", "²", "9" * 5000, " 1"])
def test_variables_that_are_no_numbers_are_left_out(text: str) -> None:
    assert elastic({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": text}) is None
    told = elastic({**TORCHRUN, "GROUP_RANK": text})
    assert told == Elastic(restarts=1, max_restarts=3)
    assert _registered(told).elastic == told
