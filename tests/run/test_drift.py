"""A script that overwrites an agreed value: log, receipt, history and status report it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos.harness.fork_server import ForkServer

from instep import control
from instep.etcd import Client
from instep.protocol.keys import Keys
from run.harness import TrainingRun, wait_for

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SCRIPT = Path(__file__).with_name("own_schedule_trainer.py")
SAID = "the optimizer of rank 0 does not hold lr: another part of the script overwrites it"


def test_a_script_that_overwrites_a_bound_value_is_reported_everywhere(
    training: TrainingRun, fork_server: ForkServer
) -> None:
    trainer = training.start(0, 1, script=SCRIPT, fork_server=fork_server)
    trainer.wait_said("joined")
    told = wait_for(lambda: [line for line in trainer.errors if "does not hold the agreed lr" in line], "the warning")
    assert "group 0 of the optimizer holds lr=" in told[0]

    def instep(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **training.environment()}
        command = [sys.executable, "-m", "instep", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)

    receipt = json.loads(instep("set", "gpt-a", "lr=0.02", "wd=0.1", "--wait", "--json").stdout)["receipt"]
    assert (receipt["outcome"], receipt["drift"]) == ("applied", {"lr": "0"})
    assert SAID in receipt["sentence"]
    assert SAID in " ".join(instep("history", "gpt-a").stdout.split())

    async def status() -> Any:
        async with Client(training.server.endpoints) as client:
            return await control.status(client, Keys(training.namespace, "gpt-a"))

    wait_for(lambda: asyncio.run(status()).drift == {"lr": "0"}, "the status")
    assert SAID in " ".join(instep("status", "gpt-a").stdout.split())
    held = json.loads(instep("set", "gpt-a", "wd=0.2", "end=true", "--wait", "--json").stdout)["receipt"]
    assert held["drift"] == {}
    assert trainer.finish() == 0
    assert len([line for line in trainer.errors if "does not hold" in line]) == 1
