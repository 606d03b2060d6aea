"""Keys of a training run are deleted by hand: the ranks never train with different values."""

from __future__ import annotations

import pytest

from etcd_gateway import read_keys
from run.harness import TrainingRun, wait_for


@pytest.mark.parametrize(
    "path",
    [
        "state/",
        "state/agreed",
        pytest.param("state/view", marks=pytest.mark.long),
        pytest.param("state/plans/", marks=pytest.mark.long),
        "reports/members/",
        "election/",
    ],
)
def test_keys_deleted_from_a_training_run_stop_no_change(training: TrainingRun, path: str) -> None:
    trainers = training.start_all(2, nodes="ab")
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    wait_for(lambda: training.keys("reports/receipts/"), "the receipts")
    training.server.etcdctl("del", "--prefix", f"{training.namespace}/gpt-a/{path}")
    training.put("lr", "0.02")
    (step,) = {trainer.wait_config(lr=0.02) for trainer in trainers}
    trainers[1].kill()
    trainers[1].finish()
    again = training.start(1, 2, f"--start={step + 1}", node="b")
    assert again.wait_said("joined")["config"]["lr"] == 0.02
    training.put("lr", "0.03")
    assert len({trainer.wait_config(lr=0.03) for trainer in (trainers[0], again)}) == 1
    training.stop(trainers[0], again)


def test_an_overwritten_registration_is_written_again(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    for path in training.keys("reports/members/"):
        training.server.etcdctl("put", "--", path, "garbage")
    prefix = f"{training.namespace}/gpt-a/reports/members/"
    wait_for(lambda: "garbage" not in read_keys(training.server, prefix, prefix=True).values(), "both again", 30)
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    training.stop(*trainers)


def test_a_state_that_no_worker_remembers_is_not_invented(training: TrainingRun) -> None:
    """A value that was desired but never agreed on must not reach a newcomer alone."""
    trainers = training.start_all(2)
    training.put("clip", "1e-9")
    wait_for(lambda: training.key("state/rejected/clip"), "the rejection")
    training.server.etcdctl("del", "--prefix", f"{training.namespace}/gpt-a/state/")
    wait_for(lambda: training.key("state/agreed"), "what was agreed to be there again")
    assert training.key("state/agreed")["values"]["clip"] == 1.0
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    training.stop(*trainers)
