"""User errors: one clear sentence with the fix, and no other worker is affected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instep.testing import EtcdServer
from run.harness import Trainer, TrainingRun, assert_in_step, wait_for


def failed(trainer: Trainer, kind: str, *parts: str) -> str:
    """The one sentence that the trainer ended with, after checking its kind and that it names each part."""
    error = trainer.wait_said("error")
    assert error["kind"] == kind, error
    assert trainer.finish() == error["exit_code"] != 0
    for part in parts:
        assert part in error["text"], error["text"]
    assert "Traceback" not in "".join(trainer.errors)
    return str(error["text"])


BAD_VALUES = [
    ("lr", "abc", "is not JSON"),
    ("lr", "", "is not JSON"),
    ("lr", "[1, 2]", "is not one value"),
    ("lr", "NaN", "is not JSON"),
    ("lr", '"0.1"', "valid number"),
    ("lr", "true", "valid number"),
    ("lr", "-1", "greater than 0"),
    ("lr", "5", "less than or equal to 1"),
    ("batch_size", "1.5", "valid integer"),
    ("name", "adam", "is not JSON"),
    ("learning_rate", "0.1", "no hyperparameter has this name"),
    ("dropout", "0.5", "fixed while the run trains"),
    ("name", '"' + "x" * 70_000 + '"', "65536 is the most"),
    ("clip", "1e-9", "clip must be above lr"),
]


def test_a_value_that_cannot_be_used_is_rejected_with_its_reason(training: TrainingRun) -> None:
    """One after the other; after each of them a good value is agreed on."""
    trainers = training.start_all(2)
    newest = 0
    for number, (name, text, reason) in enumerate(BAD_VALUES, start=1):
        training.put(name, text)

        def rejection(path: str = f"state/rejected/{name}", newest: int = newest) -> dict[str, Any] | None:
            found = training.key(path)
            return found if found and found["revision"] > newest else None

        rejected = wait_for(rejection, f"the rejection of {name}={text[:20]}")
        newest = rejected["revision"]
        assert reason in rejected["reason"], rejected
        training.put("lr", str(number / 100))
        assert len({trainer.wait_config(lr=number / 100) for trainer in trainers}) == 1
    for trainer in trainers:
        assert all(event["config"]["dropout"] == 0.1 for event in trainer.said("config"))
    training.stop()
    assert_in_step(*trainers)


def test_a_rejected_value_is_forgotten_when_a_good_one_is_written(training: TrainingRun) -> None:
    trainers = training.start_all(1)
    training.put("lr", "5")
    wait_for(lambda: training.key("state/rejected/lr"), "the rejection")
    training.put("lr", "0.5")
    trainers[0].wait_config(lr=0.5)
    wait_for(lambda: training.key("state/rejected/lr") is None, "the rejection to go")
    training.stop()


def test_one_bad_value_rejects_the_whole_change_it_came_with(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    training.put_together(lr=0.5, clip=-1.0)
    rejected = wait_for(lambda: training.key("state/rejected/lr"), "the rejection")
    assert "written together with clip" in rejected["reason"]
    for trainer in trainers:
        assert all(event["config"]["lr"] == 3e-4 for event in trainer.said("config"))
    training.stop()


def test_nonsense_in_etcd_does_not_keep_a_run_from_starting(training: TrainingRun) -> None:
    training.put("lr", "nonsense")
    trainers = training.start_all(2)
    for trainer in trainers:
        assert trainer.said("joined")[0]["config"]["lr"] == 3e-4
    assert "is not JSON" in wait_for(lambda: training.key("state/rejected/lr"), "the rejection")["reason"]
    training.stop()


def test_a_second_join_of_a_training_rank_is_refused_and_both_processes_log_why(training: TrainingRun) -> None:
    first, other = training.start_all(2)
    second = training.start(0, 2)
    held = f"rank 0 of this run is process {first.process.pid} on "
    failed(second, "JoinRefused", held, f"process {second.process.pid} on ", "take_over=True")
    wait_for(lambda: any("another process wanted to join as rank 0" in line for line in first.errors), "the warning")
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in (first, other)}) == 1
    assert training.key("state/view")["number"] == 1
    training.stop(first, other)


def test_a_join_that_times_out_names_the_holder_of_its_rank_the_etcd_and_the_namespace(training: TrainingRun) -> None:
    training.extra_environment["INSTEP_TTL_S"] = "30"
    (first,) = training.start_all(1)
    second = training.start(0, 1, "--timeout-s=4")
    failed(
        second, "JoinTimeout", "rank 0 belongs to a live process on node ", training.namespace, training.server.endpoint
    )
    training.stop(first)


def test_a_second_join_with_take_over_replaces_the_rank_and_logs_it(training: TrainingRun) -> None:
    first, other = training.start_all(2)
    second = training.start(0, 2, "--take-over")
    second.wait_said("joined")
    failed(first, "Evicted", "rank 0 was taken over", "RANK")
    training.put("lr", "0.01")
    for trainer in (second, other):
        trainer.wait_config(lr=0.01)
    training.stop(second, other)


def test_a_rank_with_another_world_size_is_refused_and_the_others_continue(training: TrainingRun) -> None:
    trainers = training.start_all(3)
    stray = training.start(0, 2)
    failed(stray, "JoinRefused", "the world size is 2, the others say 3", "WORLD_SIZE")
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    assert training.key("state/view")["number"] == 1
    training.stop(*trainers)


def test_a_rank_with_another_schema_is_refused_and_the_others_join(training: TrainingRun) -> None:
    early = [training.start(rank, 3) for rank in (0, 1)]
    stray = training.start(2, 3, "--schema=other")
    failed(stray, "JoinRefused", "declares other hyperparameters", "same version")
    late = training.start(2, 3)
    for trainer in (*early, late):
        trainer.wait_said("joined")
    training.stop(*early, late)


def test_a_join_that_waits_in_vain_names_the_missing_ranks(training: TrainingRun) -> None:
    with_an_agent(training, 5)
    lonely = training.start(2, 5, "--timeout-s=3")
    failed(lonely, "JoinTimeout", "ranks 1,3-4 of 5 to join")


def with_an_agent(training: TrainingRun, world_size: int) -> None:
    """Rank 0 waits, and its node's agent runs: the timeout of the next rank is not spent on starting one."""
    training.start(0, world_size)
    wait_for(lambda: training.folder_of().socket.exists(), "the agent")


def test_a_run_name_that_cannot_be_a_key_is_refused_before_any_connection(training: TrainingRun) -> None:
    environment = {"INSTEP_ETCD": "http://127.0.0.1:1"}
    names = ["gpt a", "gpt/a", "", "-a", "x" * 200]
    for trainer in [training.start(0, 1, f"--run={name}", environment=environment) for name in names]:
        failed(trainer, "SettingsError", "is not usable", "letters, digits")


UNUSABLE_SETTINGS: list[tuple[dict[str, str], str]] = [
    ({"RANK": "2"}, "rank 2 does not exist in a world of 2"),
    ({"RANK": "one"}, "RANK is 'one'"),
    ({"WORLD_SIZE": "0"}, "at least 1"),
    ({"INSTEP_TTL_S": "1"}, "between 2 and 3600"),
    ({"INSTEP_NAMESPACE": "no-slash"}, "starts with a slash"),
    ({"INSTEP_ETCD": "ftp://etcd:2379"}, "use http:// or https://"),
    ({"INSTEP_ETCD": "etcd:99999"}, "no usable host or port"),
    ({"INSTEP_USER": "ann"}, "INSTEP_PASSWORD_FILE"),
    ({"INSTEP_RUNTIME_DIR": "/proc/nowhere"}, "INSTEP_RUNTIME_DIR"),
    ({"INSTEP_ETCD": "", "XDG_DATA_HOME": "/tmp/nothing-here"}, "instep local"),
]


def test_settings_that_cannot_work_are_named_with_their_fix(training: TrainingRun) -> None:
    trainers = [training.start(0, 2, environment=environment) for environment, _ in UNUSABLE_SETTINGS]
    for trainer, (_, part) in zip(trainers, UNUSABLE_SETTINGS, strict=True):
        failed(trainer, "SettingsError", part)


def test_an_etcd_that_refuses_connections_is_named_at_the_timeout(training: TrainingRun) -> None:
    training.extra_environment["INSTEP_ETCD"] = "http://127.0.0.1:1"
    with_an_agent(training, 2)
    trainer = training.start(1, 2, "--timeout-s=4")
    failed(trainer, "JoinTimeout", "127.0.0.1:1", "refused")


def test_join_waits_for_an_etcd_that_starts_late(fragile_training: TrainingRun) -> None:
    fragile_training.server.pause()
    trainer = fragile_training.start(0, 1)
    wait_for(lambda: fragile_training.folder_of().socket.exists(), "the agent")
    fragile_training.server.resume()
    trainer.wait_said("joined")
    fragile_training.stop()


@pytest.fixture(scope="module")
def guarded_etcd() -> Iterator[EtcdServer]:
    with EtcdServer(auth="ann:secret") as server:
        yield server


@pytest.fixture
def guarded(guarded_etcd: EtcdServer, short_folder: Path, namespace: str) -> Iterator[TrainingRun]:
    run = TrainingRun(guarded_etcd, short_folder, namespace=namespace)
    yield run
    run.close()


def test_a_user_and_a_password_file_are_enough(guarded: TrainingRun) -> None:
    trainers = guarded.start_all(2)
    guarded.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    guarded.stop()


def test_a_wrong_password_is_reported_at_once(guarded: TrainingRun, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong\n")
    wrong.chmod(0o600)
    trainer = guarded.start(0, 1, environment={"INSTEP_PASSWORD_FILE": str(wrong)})
    failed(trainer, "EtcdDenied", "password")


def test_a_missing_user_is_reported_at_once(guarded: TrainingRun) -> None:
    trainer = guarded.start(0, 1, environment={"INSTEP_USER": "", "INSTEP_PASSWORD_FILE": ""})
    failed(trainer, "EtcdDenied", "user")


@pytest.fixture
def secured(tls_etcd: EtcdServer, short_folder: Path, namespace: str) -> Iterator[TrainingRun]:
    run = TrainingRun(tls_etcd, short_folder, namespace=namespace)
    yield run
    run.close()


def test_mutual_tls_works_with_the_certificates_from_the_environment(secured: TrainingRun) -> None:
    trainers = secured.start_all(2)
    secured.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    secured.stop()


def test_a_certificate_of_another_authority_is_reported_at_once(secured: TrainingRun) -> None:
    foreign = secured.server.certificates.foreign()
    environment = {"INSTEP_CACERT": foreign.ca, "INSTEP_CERT": foreign.cert, "INSTEP_KEY": foreign.key}
    failed(secured.start(0, 1, environment=environment), "EtcdDenied", "certificate")


def test_plain_text_to_a_tls_port_is_reported_at_once(secured: TrainingRun) -> None:
    plain = secured.server.endpoint.replace("https://", "http://")
    environment = {"INSTEP_ETCD": plain, "INSTEP_CACERT": "", "INSTEP_CERT": "", "INSTEP_KEY": ""}
    failed(secured.start(0, 1, environment=environment), "EtcdDenied", "https")


def test_a_key_that_others_can_read_is_refused_with_the_fix(secured: TrainingRun, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text(Path(secured.server.certificates.key).read_text())
    key.chmod(0o644)
    failed(secured.start(0, 1, environment={"INSTEP_KEY": str(key)}), "SettingsError", str(key), "chmod")
    allowed = secured.start(0, 1, environment={"INSTEP_KEY": str(key), "INSTEP_ALLOW_READABLE_KEY": "1"})
    allowed.wait_said("joined")
    secured.stop(allowed)


def test_a_missing_key_is_named(secured: TrainingRun, tmp_path: Path) -> None:
    failed(secured.start(0, 1, environment={"INSTEP_KEY": str(tmp_path / "no.pem")}), "SettingsError", "no.pem")


@pytest.mark.skipif(os.getuid() == 0, reason="root can read every file")
def test_a_key_that_cannot_be_read_is_named(secured: TrainingRun, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("x")
    key.chmod(0o000)
    failed(secured.start(0, 1, environment={"INSTEP_KEY": str(key)}), "SettingsError", str(key))
