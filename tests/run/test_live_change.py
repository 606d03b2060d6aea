"""An operator changes a value while the run trains, and every rank applies it at the same step."""

from __future__ import annotations

from run.harness import TrainingRun, assert_in_step, wait_for


def test_a_change_reaches_every_rank_at_the_same_step(training: TrainingRun) -> None:
    trainers = training.start_all(4)
    training.put("lr", "0.01")
    steps = {trainer.wait_config(lr=0.01) for trainer in trainers}
    assert len(steps) == 1
    done = training.stop()
    assert_in_step(*trainers)
    assert sum(item["leads"] for item in done) == 1


def test_ranks_on_several_nodes_apply_at_the_same_step(training: TrainingRun) -> None:
    trainers = training.start_all(4, nodes="ab")
    for value in (0.01, 0.02, 0.03):
        training.put("lr", str(value))
        assert len({trainer.wait_config(lr=value) for trainer in trainers}) == 1
    training.stop()
    assert_in_step(*trainers)


def test_the_trainer_holds_no_grpc_no_torch_and_no_thread(training: TrainingRun) -> None:
    training.start_all(2)
    for item in training.stop():
        assert not item["grpc"]
        assert not item["torch"]
        assert item["threads"] == 1


def test_keys_written_in_one_revision_are_one_change(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    for number in range(1, 6):
        training.put_together(lr=number / 10, clip=number + 1.5)
        for trainer in trainers:
            trainer.wait_config(lr=number / 10)
    training.stop()
    assert_in_step(*trainers)
    for trainer in trainers:
        pairs = {(event["config"]["lr"], event["config"]["clip"]) for event in trainer.said("config")}
        assert pairs == {(3e-4, 1.0)} | {(number / 10, number + 1.5) for number in range(1, 6)}


def test_receipts_name_the_step_at_which_each_rank_applied(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    training.put("lr", "0.01")
    step = trainers[0].wait_config(lr=0.01)
    receipts = wait_for(lambda: training.keys("reports/receipts/"), "a receipt")
    document = training.key(receipts[0].removeprefix(f"{training.namespace}/gpt-a/"))
    assert document["steps"] == {"0": step, "1": step}
    training.stop()


def test_every_rank_starts_with_the_values_set_before(training: TrainingRun) -> None:
    training.put("lr", "0.25")
    trainers = training.start_all(2)
    for trainer in trainers:
        assert trainer.said("joined")[0]["config"] == {
            "lr": 0.25,
            "clip": 1.0,
            "batch_size": 32,
            "name": "adam",
            "dropout": 0.1,
        }
    training.stop()


def test_without_a_schema_any_scalar_is_a_hyperparameter(training: TrainingRun) -> None:
    trainers = training.start_all(2, "--schema=none")
    training.put("anything", '"goes"')
    assert len({trainer.wait_config(anything="goes") for trainer in trainers}) == 1
    training.stop()


def test_a_rank_that_ended_cleanly_blocks_no_change(training: TrainingRun) -> None:
    short = training.start(0, 2, "--steps=50")
    other = training.start(1, 2)
    assert short.finish() == 0
    training.put("lr", "0.01")
    other.wait_config(lr=0.01)
    training.stop(other)


def test_a_fresh_start_uses_the_desired_values(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    training.stop(*trainers)
    training.put("clip", "3.5")
    again = training.start_all(2)
    for trainer in again:
        config = trainer.said("joined")[0]["config"]
        assert (config["lr"], config["clip"]) == (0.01, 3.5)
    training.stop(*again)
