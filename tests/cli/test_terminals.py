"""Output on terminals and pipes of any encoding, and JSON that every parser takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from command import environment, instep
from run_in_etcd import RunInEtcd, with_client

from instep.cli._output import as_typed
from instep.control import Keys
from instep.control._report import ValueChange
from instep.etcd import Client
from instep.testing import EtcdServer

REASON = "naïve – Straße 学習率"


@pytest.fixture
def env(etcd: EtcdServer, namespace: str) -> dict[str, str]:
    async def work(client: Client) -> None:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        await run.join()
        await run.report(0, 12, loss=float("nan"), norm=float("inf"), other=float("-inf"))
        await run.open(await client.put(run.keys.config_of("lr"), "0.0001"), {"lr": 1e-4})
        await run.commit({"lr": 1e-4}, 5)
        await run.receipt()

    with_client(etcd, work)
    return environment(etcd.environment(), INSTEP_NAMESPACE=namespace)


@pytest.mark.parametrize(
    "encoding",
    [
        {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "ascii", "C"],
)
def test_what_an_encoding_lacks_is_replaced_and_the_command_succeeds(
    env: dict[str, str], encoding: dict[str, str]
) -> None:
    legacy = {**env, **encoding}
    written = instep("set", "gpt-a", "clip=2", "--why", REASON, "--author", "ann", "--json", env=legacy)
    assert (written.code, written.json["written"]["reason"]) == (0, REASON)
    for arguments in (["set", "gpt-a", "clip=3"], ["status", "gpt-a"], ["history", "gpt-a"], ["set", "--help"]):
        ended = instep(*arguments, env=legacy)
        assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
    assert "lr 3e-4 -> 1e-4" in instep("history", "gpt-a", env=legacy).out


def test_a_number_that_json_lacks_is_given_by_name(env: dict[str, str]) -> None:
    def refused(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    ended = instep("status", "gpt-a", "--json", env=env)
    metrics = json.loads(ended.out, parse_constant=refused)["steps"]["metrics"]
    assert metrics == {"loss": "NaN", "norm": "Infinity", "other": "-Infinity"}
    page = instep("status", "gpt-a", env=env).out
    assert "loss nan" in page
    assert "norm inf" in page


def test_facts_never_hold_what_json_lacks() -> None:
    document = ValueChange("lr", float("nan"), float("inf")).to_json()
    assert (document["before"], document["after"]) == ("NaN", "Infinity")


def test_an_argument_is_read_as_utf8_whatever_the_locale() -> None:
    assert as_typed("学".encode().decode("ascii", "surrogateescape")) == "学"
    assert as_typed("plain") == "plain"
    assert as_typed("\udcff") == "\udcff"  # no UTF-8 at all: refused later, in one sentence
