"""How an agent handles workers: values that only the script can refuse, and a worker of another version."""

from __future__ import annotations

import json
import socket
import struct

from instep.wire.frames import Decoder, from_agent
from instep.wire.messages import Failure, FromAgent
from run.harness import TrainingRun, assert_in_step, wait_for


def test_a_value_that_only_the_script_refuses_does_not_keep_a_run_from_starting(training: TrainingRun) -> None:
    """`clip` must be above `lr`, which no JSON Schema expresses; the value written with it is accepted."""
    training.put("clip", "1e-9")
    training.put("batch_size", "64")
    trainers = training.start_all(4, nodes="ab")
    for trainer in trainers:
        config = trainer.said("joined")[0]["config"]
        assert (config["clip"], config["batch_size"]) == (1.0, 64)
    rejected = wait_for(lambda: training.key("state/rejected/clip"), "the rejection")
    assert "clip must be above lr" in rejected["reason"]
    training.put("clip", "2.5")
    assert len({trainer.wait_config(clip=2.5) for trainer in trainers}) == 1
    wait_for(lambda: training.key("state/rejected/clip") is None, "the rejection to go")
    training.stop(*trainers)
    assert_in_step(*trainers)


def test_the_next_start_uses_the_last_agreed_value_instead_of_a_refused_one(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    training.put("clip", "2.5")
    for trainer in trainers:
        trainer.wait_config(clip=2.5)
    training.stop(*trainers)
    training.put("clip", "1e-9")
    again = training.start_all(2)
    for trainer in again:
        assert trainer.said("joined")[0]["config"]["clip"] == 2.5
    training.stop(*again)


def test_a_worker_of_another_version_gets_that_reason(training: TrainingRun) -> None:
    """It would not understand the agent's messages."""
    training.start_all(1)
    hello = {"t": "hello", "protocol": 1, "rank": 0, "world_size": 1, "schema": None, "undecided": None}
    with socket.socket(socket.AF_UNIX) as old:
        old.connect(str(training.folder_of().socket))
        old.settimeout(10)
        body = json.dumps(hello).encode()
        old.sendall(struct.pack("!I", len(body)) + body)
        decoder, heard = Decoder(from_agent), list[FromAgent]()
        while not heard:
            heard += decoder.feed(old.recv(65536))
    assert isinstance(heard[0], Failure)
    assert "another version of Instep" in heard[0].text
    training.stop()
