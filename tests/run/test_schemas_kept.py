"""A script that is edited again and again adds a schema each time; the leader keeps the newest."""

from __future__ import annotations

from instep.agent.leader_cache import SCHEMAS_KEPT
from run.harness import TrainingRun, wait_for


def test_unused_schemas_are_deleted_except_the_newest(training: TrainingRun) -> None:
    for number in range(SCHEMAS_KEPT + 10):
        training.server.etcdctl("put", f"{training.namespace}/gpt-a/reports/schemas/old{number}", "{}")
    (trainer,) = training.start_all(1)
    trainer.wait_said("config")
    wait_for(lambda: len(training.keys("reports/schemas/")) <= SCHEMAS_KEPT + 1, "old schemas to be deleted")
    assert training.key(f"reports/schemas/old{SCHEMAS_KEPT + 9}") is not None
    training.put("lr", "0.01")
    trainer.wait_config(lr=0.01)
    training.stop()
