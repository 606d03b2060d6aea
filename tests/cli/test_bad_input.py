"""Whatever is wrong ends in one sentence on stderr, nothing on stdout, and the documented exit code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command import COMMAND, environment, instep
from run_in_etcd import RunInEtcd, with_client

from instep.control import Keys
from instep.etcd import Client
from instep.etcd_server.ports import free_ports
from instep.testing import EtcdServer


@pytest.fixture(scope="module")
def module_namespace() -> str:
    return "/bad-input"


@pytest.fixture(scope="module")
def env(etcd: EtcdServer, module_namespace: str) -> dict[str, str]:
    """A run that lives, to be asked the wrong things."""

    async def work(client: Client) -> None:
        await RunInEtcd(client, Keys(module_namespace, "gpt-a")).join()

    with_client(etcd, work)
    return environment(etcd.environment(), INSTEP_NAMESPACE=module_namespace)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["set", "gpt-a", "lr=fast"], 5, "lr: fast is not JSON"),
        (["set", "gpt-a", "lr=2"], 5, "less than or equal to 1"),
        (["set", "gpt-a", "lr=NaN"], 5, "not JSON"),
        (["set", "gpt-a", "lrr=1"], 5, "did you mean lr?"),
        (["set", "gpt-a", "sched=step"], 5, "'linear' or 'cosine'"),
        (["set", "gpt-a", "dropout=0.5"], 5, "fixed while the run trains"),
        (["set", "gpt-a", "note=" + "x" * 70_000], 5, "65536 is the most"),
        (["set", "gpt-a", "note=\x1b[2J", "lr=\x1b[2J"], 5, "not JSON"),
        (["set", "gpt-a", b"note=\xff"], 5, "not UTF-8"),
        (["set", "gpt-a", "lr"], 2, "not name=value"),
        (["set", "gpt-a", "lr=1", "lr=1"], 2, "given twice"),
        (["set", "gpt-a", "l r=1"], 2, "hyperparameter name"),
        (["set", "gpt-a", "lr=1", "--timeout", "0", "--wait"], 2, "a timeout of"),
        (["set", "gpt-a", "lr=1", "--timeout", "nan", "--wait"], 2, "a timeout of"),
        (["set", "gpt-a", "lr=1", "--why", "x" * 2000], 2, "reason"),
        (["set", "gpt-b", "lr=1"], 6, "did you mean 'gpt-a'?"),
        (["set", "gpt/a", "lr=1"], 2, "run name"),
        (["status", "gpt a"], 2, "run name"),
        (["status", "../gpt-a"], 2, "run name"),
        (["status", "gpt-b"], 6, "did you mean 'gpt-a'?"),
        (["get", "gpt-b"], 6, "No run 'gpt-b'"),
        (["get", "gpt-a", "lrr"], 5, "did you mean lr?"),
        (["history", "gpt-b"], 6, "No run 'gpt-b'"),
        (["history", "gpt-a", "--limit", "0"], 2, "1 to 1000"),
        (["pause", "gpt-b"], 6, "did you mean 'gpt-a'?"),
        (["pause", "gpt-a", "--why", "x" * 2000], 2, "reason"),
        (["resume", "gpt-a"], 5, "the run is not paused"),
        (["checkpoint", "gpt-a", "--timeout", "0"], 2, "a timeout of"),
        (["checkpoints", "gpt-b"], 6, "No run 'gpt-b'"),
        (["stop", "gpt-a", "--node", "\x1b[2J"], 5, "no node of the run has the name or host"),
        (["act", "gpt-a", "two words"], 2, "the action name 'two words' is not usable"),
        (["act", "gpt-b"], 6, "No run 'gpt-b'"),
        (["restore", "gpt-a", "7-7"], 5, "there is no checkpoint '7-7'; there are none"),
        (["restore", "gpt-a", "../7-7"], 5, "there is no checkpoint '../7-7'"),
        (["runs", "--namespace", "no slash"], 2, "namespace"),
        (["--namespace", "no slash", "runs"], 2, "namespace"),
        (["runs", "--etcd", "ftp://x"], 2, "scheme"),
        (["local", "--stop", "--detach"], 2, "exclude each other"),
    ],
)
def test_a_mistake_is_one_sentence(env: dict[str, str], arguments: list[str | bytes], code: int, said: str) -> None:
    ended = instep(*arguments, env=env)
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert said in ended.err
    assert ended.err.startswith("instep: ")
    assert ended.err.count("\n") == 1
    assert "\x1b" not in ended.err


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["set"], ["set", "gpt-a"], ["status", "gpt-a", "--x"], ["restore", "gpt-a"]]
)
def test_a_usage_mistake_exits_2(env: dict[str, str], arguments: list[str]) -> None:
    ended = instep(*arguments, env=env)
    assert (ended.code, ended.out) == (2, "")


def test_nothing_is_written_by_mistakes(etcd: EtcdServer, env: dict[str, str], module_namespace: str) -> None:
    instep("set", "gpt-a", "clip=0.5", "lr=2", env=env)
    instep("resume", "gpt-a", env=env)
    assert etcd.etcdctl("get", "--prefix", "--keys-only", f"{module_namespace}/gpt-a/c") == ""


def test_an_etcd_that_is_not_there_is_named_with_the_cure() -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1, '127.0.0.1')[0]}"
    ended = instep("runs", env=environment({"INSTEP_ETCD": endpoint}))
    assert (ended.code, ended.out) == (3, "")
    assert endpoint.removeprefix("http://") in ended.err
    assert ended.err.count("\n") == 1


def test_without_any_etcd_the_cure_is_told(tmp_path: Path) -> None:
    ended = instep("runs", env=environment({"XDG_DATA_HOME": str(tmp_path)}))
    assert (ended.code, ended.out) == (2, "")
    assert "INSTEP_ETCD" in ended.err
    assert "instep local" in ended.err


def test_a_wrong_password_exits_4(tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    with EtcdServer(auth="ann:secret") as server:
        right = environment(server.environment())
        assert instep("runs", env=right).code == 0
        ended = instep("runs", env={**right, "INSTEP_PASSWORD_FILE": str(wrong)})
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("instep: the password of etcd user 'ann' is sent unencrypted")
    assert ended.err.count("\n") == 2


def test_tls_settings_are_used(tls_etcd: EtcdServer) -> None:
    env = environment(tls_etcd.environment())
    assert instep("runs", env=env).code == 0
    ended = instep("runs", env={name: value for name, value in env.items() if name != "INSTEP_CACERT"})
    assert ended.code == 4
    assert ended.err.count("\n") == 1


def test_options_may_stand_before_or_after_the_command(
    etcd: EtcdServer, module_namespace: str, env: dict[str, str]
) -> None:
    bare = environment({})
    for arguments in (
        ["--etcd", etcd.endpoint, "--namespace", module_namespace, "runs", "--json"],
        ["runs", "--etcd", etcd.endpoint, "--namespace", module_namespace, "--json"],
    ):
        assert instep(*arguments, env=bare).json["runs"][0]["name"] == "gpt-a"


def test_a_closed_pipe_is_no_error(env: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "status", "gpt-a"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.wait(60)
    process.stderr.close()
    assert "Traceback" not in err
