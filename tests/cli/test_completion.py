"""What bash offers at the TAB key, through the script that the installed command prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment, instep
from run_in_etcd import RunInEtcd, with_client

from instep.control import Keys
from instep.etcd import Client
from instep.testing import EtcdServer

BIN = Path(sys.executable).parent
SCRIPT = """
eval "$(instep --show-completion bash 2>/dev/null)"
for words in "$@"; do
    COMP_WORDS=($words); [[ $words == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _instep_completion instep
    (IFS=,; echo "$words: ${COMPREPLY[*]}")
done
"""

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or not (BIN / "instep").exists(), reason="needs bash, and Instep installed"
)


def offered(env: dict[str, str], *typed: str) -> dict[str, set[str]]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT, "bash", *typed],
        env={**env, "PATH": path, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    lines = (line.rpartition(": ") for line in done.stdout.splitlines())
    return {words: set(filter(None, found.split(","))) for words, _, found in lines}


def test_bash_completes_runs_values_actions_and_checkpoints(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        await run.join()
        for rank in range(4):
            await run.report(rank, 12, actions=("evaluate",))
        await run.save(12)
        await client.put(f"{namespace}/gpt-b/config/lr", "1")
        await client.put(f"{namespace}/bert/config/lr", "1")

    with_client(etcd, work)
    env = environment(etcd.environment(), INSTEP_NAMESPACE=namespace)
    found = offered(
        env,
        "instep status gpt",
        "instep get gpt-a l",
        "instep set gpt-a l",
        "instep act gpt-a ",
        "instep restore gpt-a ",
        "instep stat",
    )
    assert found == {
        "instep status gpt": {"gpt-a", "gpt-b"},
        "instep get gpt-a l": {"lr"},
        "instep set gpt-a l": {"lr=", "lr=3e-4"},
        "instep act gpt-a ": {"evaluate"},
        "instep restore gpt-a ": {"latest", "12-7"},
        "instep stat": {"status"},
    }


def test_without_etcd_nothing_is_offered_and_nothing_is_printed() -> None:
    assert offered(environment({"INSTEP_ETCD": "http://127.0.0.1:1"}), "instep status g") == {"instep status g": set()}


def test_a_name_in_another_case_is_recognized(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        await RunInEtcd(client, Keys(namespace, "gpt-a-2026-11")).join()

    with_client(etcd, work)
    env = environment(etcd.environment(), INSTEP_NAMESPACE=namespace)
    for meant in ("GPT-A-2026-11", "gpt", "gpt-a-2026-12"):
        assert "did you mean 'gpt-a-2026-11'?" in instep("status", meant, env=env).err
    assert "did you mean lr?" in instep("set", "gpt-a-2026-11", "LR=1", env=env).err
