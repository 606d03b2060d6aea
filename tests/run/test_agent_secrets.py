"""What a user who may inspect the node's own processes can read."""

from __future__ import annotations

from pathlib import Path

from chaos.harness.processes import parent_of

from instep.testing import EtcdServer
from run.harness import TrainingRun

PASSWORD = "hunter2-of-etcd"


def test_neither_the_agent_nor_its_supervisor_holds_a_password_or_a_secret_of_the_script_in_its_environment(
    short_folder: Path, namespace: str
) -> None:
    with EtcdServer(auth=f"root:{PASSWORD}") as server:
        training = TrainingRun(server, short_folder, namespace=namespace)
        secrets = {"ETCDCTL_USER": "root", "ETCDCTL_PASSWORD": PASSWORD, "WANDB_API_KEY": PASSWORD}
        training.extra_environment = {**secrets, "INSTEP_USER": "", "INSTEP_PASSWORD_FILE": ""}
        try:
            trainer = training.start(0, 1)
            trainer.wait_said("joined")
            assert any("is sent unencrypted to http://" in line for line in trainer.errors)
            agent = _agent(training)
            supervisor = parent_of(agent)
            assert b"instep.agent" in Path(f"/proc/{supervisor}/cmdline").read_bytes()
            for pid in (agent, supervisor):
                for shown in ("environ", "cmdline"):
                    assert PASSWORD.encode() not in Path(f"/proc/{pid}/{shown}").read_bytes(), (pid, shown)
            training.stop()
        finally:
            training.close()


def _agent(training: TrainingRun) -> int:
    """By its log: the runtime folder is named by the user too."""
    (log,) = training.node("a").glob("*/agent.log")
    return int(log.read_text().split(" agent ", 1)[1].split()[0])
