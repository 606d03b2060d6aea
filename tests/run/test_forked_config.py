"""`run.config` outside the process that joined: outdated in a forked child, which warns; a run cannot be sent to
another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from run.harness import SOURCE, TrainingRun

READS = """
import json, os, pickle, instep

class Hyper(instep.Hyperparameters):
    lr: float = 0.5

def in_child(act):
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    os.waitpid(child, 0)

with instep.join("gpt-a", Hyper) as run:
    run.boundary(7)
    run.config.lr
    in_child(lambda: None)
    for _ in range(3):
        in_child(lambda: [run.config.lr for _ in range(5)])
    try:
        pickle.dumps(run)
    except instep.InstepError as error:
        print(json.dumps(str(error)))
"""


def test_a_child_that_reads_the_config_warns_once_and_a_run_cannot_be_pickled(
    training: TrainingRun,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", READS],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **training.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (warning,) = [line for line in ended.stderr.splitlines() if "run.config is read in process" in line]
    assert "keeps the values of the fork (after step 7) and receives no changes" in warning
    assert "docs/howto/data-loaders.md" in warning
    assert "cannot be sent to another one: give that process the " in json.loads(ended.stdout)
