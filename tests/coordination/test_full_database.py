"""The database is full while a plan is open, and agents die before there is space again."""

from __future__ import annotations

from agreement_machine import DriftingMachine


def test_a_plan_that_no_agent_could_abort_is_aborted_when_there_is_space() -> None:
    """All have promised it, no commit could be written, and each rank continued when its mark was deleted. The agents
    that had to record the abort are killed."""
    machine = DriftingMachine()
    machine.begin_with(((0,), (1,)), stop=0)
    with machine.stack:
        cluster = machine.cluster
        for host in cluster.hosts:
            host.client.hold_watch("acks")
        cluster.put({"lr": "0.2"})
        while len(cluster.store.range(cluster.keys.acks).kvs) < 2:
            cluster.go()
        plan = cluster.plan(1)
        assert plan is not None
        cluster.store.full = True
        while min(worker.step for worker in cluster.workers.values()) <= plan.gate:
            cluster.go()
            cluster.loop.advance(0.02)
        for host in cluster.hosts:
            host.crash(keep_down=False)
        machine.come_to_rest()
