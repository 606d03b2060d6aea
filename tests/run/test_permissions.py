"""Roles of etcd that lack a permission: which processes report it, and what they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instep.testing import EtcdServer
from run.harness import TrainingRun, wait_for

USER = "tess"
FOLDERS = ("election/", "state/", "reports/", "history/", "checkpoints/", "commands/", "changes/")
KEYS = ("schema", "attempts")

Limited = Callable[[str], TrainingRun]


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[EtcdServer]:
    with EtcdServer(auth={"root": "secret", "admin": "secret"}) as server:
        yield server


@pytest.fixture
def limited(guarded_server: EtcdServer, short_folder: Path, namespace: str) -> Iterator[Limited]:
    """Makes a run whose user has the smallest role of an agent but for one folder or key."""
    runs: list[TrainingRun] = []
    password = short_folder / "password"
    password.write_text("secret\n")
    password.chmod(0o600)

    def make(without: str) -> TrainingRun:
        role = f"{namespace.strip('/')}-role"
        root = f"{namespace}/gpt-a/"
        for command in (
            ("role", "add", role),
            ("role", "grant-permission", role, "--prefix=true", "read", root),
            *(
                ("role", "grant-permission", role, "--prefix=true", "readwrite", root + f)
                for f in FOLDERS
                if f != without
            ),
            *(("role", "grant-permission", role, "readwrite", root + key) for key in KEYS if key != without),
            ("user", "add", f"{role}:secret"),
            ("user", "grant-role", role, role),
        ):
            guarded_server.etcdctl(*command)
        run = TrainingRun(guarded_server, short_folder, namespace=namespace)
        run.extra_environment = {"INSTEP_USER": role, "INSTEP_PASSWORD_FILE": str(password)}
        runs.append(run)
        return run

    yield make
    for run in runs:
        run.close()


def test_the_smallest_role_is_enough(limited: Limited) -> None:
    training = limited("")
    training.start_all(1)
    training.put("lr", "0.01")
    training.trainers[0].wait_config(lr=0.01)
    training.stop()


@pytest.mark.parametrize("missing", ["election/", "state/", "history/", "schema"])
def test_a_rank_that_cannot_join_learns_at_once_which_permission_is_missing(limited: Limited, missing: str) -> None:
    training = limited(missing)
    trainer = training.start(0, 1)
    said = trainer.wait_said("error")
    assert said["kind"] == "EtcdDenied"
    assert f"write {training.namespace}/gpt-a/{missing}" in said["text"]
    assert "grant its role that permission" in said["text"]
    assert trainer.finish() == 4
    assert f"write {training.namespace}/gpt-a/{missing}" in training.agent_log()


def test_training_ranks_learn_of_a_missing_permission_which_can_be_granted_live(limited: Limited) -> None:
    training = limited("")
    (trainer,) = training.start_all(1)
    root = f"{training.namespace}/gpt-a/"
    role = training.extra_environment["INSTEP_USER"]
    training.server.etcdctl("role", "revoke-permission", role, "--prefix=true", f"{root}commands/")
    training.server.etcdctl("put", f"{root}commands/a", '{"kind": "pause"}')
    wait_for(
        lambda: any(f"write {root}commands/a" in line for line in trainer.errors), "the permission in training's log"
    )
    training.server.etcdctl("role", "grant-permission", role, "--prefix=true", "readwrite", f"{root}commands/")
    wait_for(lambda: not training.keys("commands/"), "the command to be taken")
    training.server.etcdctl("put", f"{root}commands/b", '{"kind": "resume"}')
    wait_for(lambda: not training.keys("commands/"), "the command to be taken")
    training.stop()
