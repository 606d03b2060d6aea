"""A run that torchrun forms anew is steered as before: the workers' `instep.join` and etcd3 on one etcd."""

from __future__ import annotations

import json
import signal

import pytest

from run.harness import wait_for
from torchrun.elastic import FOLDER, Agent, ElasticRun

pytestmark = pytest.mark.torch


def start(elastic: ElasticRun, name: str, **more: int) -> Agent:
    runtime = elastic.folder / name
    runtime.mkdir(mode=0o700)
    environ = {
        **elastic.server.environment(),
        "INSTEP_NAMESPACE": elastic.namespace,
        "INSTEP_RUNTIME_DIR": str(runtime),
        "INSTEP_TTL_S": "2",
    }
    script = [str(FOLDER / "elastic_joiner.py"), str(elastic.folder)]
    return elastic.start("1:2", environ=environ, script=script, **more)


def test_the_others_go_on_when_a_node_is_told_to_end(elastic: ElasticRun) -> None:
    """All ranks save and leave the run in one step then. Those of the node that stays must not count as finished."""
    goes, stays = start(elastic, "a", max_restarts=0), start(elastic, "b", max_restarts=0)
    both = elastic.wait_world([goes, stays])
    goes.tell(signal.SIGTERM)
    elastic.wait_world([stays], other_than=[both])
    assert stays.last["restarts"] == 0
    assert goes.wait_ended() != 0
    elastic.finish(stays)


@pytest.mark.long
def test_changes_apply_on_all_nodes_before_and_after_a_node_has_died(elastic: ElasticRun) -> None:
    def change(lr: float, *agents: Agent) -> None:
        elastic.server.etcdctl("put", "--", f"{elastic.namespace}/steered/config/lr", json.dumps(lr))
        wait_for(lambda: all(agent.last.get("lr") == lr for agent in agents), f"lr {lr}\n{elastic.story()}")

    dies, stays = start(elastic, "a"), start(elastic, "b")
    both = elastic.wait_world([dies, stays])
    change(0.2, dies, stays)
    dies.die()
    alone = elastic.wait_world([stays], other_than=[both])
    assert stays.last["lr"] == 0.2
    change(0.3, stays)
    comes = start(elastic, "c")
    elastic.wait_world([stays, comes], other_than=[both, alone])
    change(0.4, stays, comes)
    elastic.finish(stays, comes)
