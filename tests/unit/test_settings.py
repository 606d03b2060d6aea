"""Where etcd is, and as which user Instep connects."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.discovery import LocalEtcd, discovery_file, start_of, write
from instep.errors import SettingsError
from instep.runtime import process_environment
from instep.settings import MAX_TTL_S, MIN_TTL_S, Settings, parse_endpoints, resolve

A = {"INSTEP_ETCD": "http://a:1"}


@pytest.fixture(autouse=True)
def _no_local_etcd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


# -- endpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("a", ("http://a:2379",)),
        ("a:1", ("http://a:1",)),
        ("http://a:1/", ("http://a:1",)),
        ("https://a:2379,b:2379", ("https://a:2379", "https://b:2379")),
        (" https://a:1 , , b:2 ,", ("https://a:1", "https://b:2")),
        ("a:1,a:1,b:1", ("http://a:1", "http://b:1")),
        ("[::1]:2379", ("http://[::1]:2379",)),
        ("https://[fe80::1]", ("https://[fe80::1]:2379",)),
        ("127.0.0.1:65535", ("http://127.0.0.1:65535",)),
        ("etcd-headless.ns.svc.cluster.local:2379", ("http://etcd-headless.ns.svc.cluster.local:2379",)),
    ],
)
def test_endpoints_are_completed(text: str, endpoints: tuple[str, ...]) -> None:
    assert parse_endpoints(text) == endpoints


def test_with_certificates_a_bare_host_uses_https() -> None:
    assert parse_endpoints("a:1,b:1", secure_by_default=True) == ("https://a:1", "https://b:1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no etcd endpoint"),
        (" , ", "names no etcd endpoint"),
        ("ftp://a:1", "scheme 'ftp'"),
        ("unix:///run/etcd.sock", "scheme 'unix'"),
        ("a:70000", "up to 65535"),
        ("a:port", "up to 65535"),
        ("a:0", "not host:port"),
        ("http://:2379", "not host:port"),
        ("http://a:1/v3", "not host:port"),
        ("http://a:1?x=1", "not host:port"),
        ("[::1", "no usable host or port"),
        ("https://a:1,http://b:1", "mixes http and https"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        parse_endpoints(text)
    assert why in str(refusal.value)


@pytest.mark.parametrize("text", ["http://root:hunter2@a:1", "http://root:hunter2@a:port", "ftp://root:hunter2@a:1"])
def test_a_password_in_an_endpoint_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        parse_endpoints(text)
    assert "hunter2" not in str(refusal.value)


@given(st.text(max_size=40))
def test_any_input_is_endpoints_or_a_settings_error(text: str) -> None:
    try:
        found = parse_endpoints(text)
    except SettingsError:
        return
    assert found
    assert parse_endpoints(",".join(found)) == found


# -- which one counts ----------------------------------------------------------------------------------------------


def test_an_argument_wins_over_instep_which_wins_over_etcdctl() -> None:
    env = {"INSTEP_ETCD": "http://instep:1", "ETCDCTL_ENDPOINTS": "http://etcdctl:1"}
    assert resolve("http://argument:1", environ=env).endpoints == ("http://argument:1",)
    assert resolve(environ=env).endpoints == ("http://instep:1",)
    assert resolve(environ={**env, "INSTEP_ETCD": ""}).endpoints == ("http://etcdctl:1",)


def test_the_origin_of_the_endpoints_is_known() -> None:
    assert resolve("a:1", environ=A).origin == "the argument etcd="
    assert resolve(environ=A).origin == "INSTEP_ETCD"
    assert resolve(environ={"ETCDCTL_ENDPOINTS": "a:1"}).origin == "ETCDCTL_ENDPOINTS"


def test_several_endpoints_may_be_given_as_a_list() -> None:
    assert resolve(["a:1", "b:1"], environ={}).endpoints == ("http://a:1", "http://b:1")


def test_the_namespace_comes_from_the_argument_then_instep_then_the_default() -> None:
    assert resolve(environ=A).namespace == "/training"
    assert resolve(environ={**A, "INSTEP_NAMESPACE": "/team/x/"}).namespace == "/team/x"
    assert resolve(namespace="/mine", environ={**A, "INSTEP_NAMESPACE": "/team"}).namespace == "/mine"


@pytest.mark.parametrize("ours", [True, False])
def test_certificates_and_keys_come_from_instep_before_etcdctl(ours: bool) -> None:
    env = {"INSTEP_ETCD": "a:1"}
    for name in ("CACERT", "CERT", "KEY"):
        env[f"ETCDCTL_{name}"] = f"/etcdctl/{name}"
        if ours:
            env[f"INSTEP_{name}"] = f"/instep/{name}"
    found = resolve(environ=env)
    home = "/instep" if ours else "/etcdctl"
    assert (found.cacert, found.cert, found.key) == (f"{home}/CACERT", f"{home}/CERT", f"{home}/KEY")
    assert found.secure


def test_file_paths_are_named_in_full_because_the_agent_has_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"INSTEP_ETCD": "https://a:1", "INSTEP_USER": "us", "INSTEP_PASSWORD_FILE": "secrets/password"}
    env |= {"INSTEP_CACERT": "ca.pem", "INSTEP_CERT": "./cert.pem", "INSTEP_KEY": "key.pem"}
    found = resolve(environ=env)
    assert [found.cacert, found.cert, found.key] == [str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")]
    assert found.password_file == str(tmp_path / "secrets" / "password")


def test_the_user_comes_from_instep_before_etcdctl() -> None:
    env = {**A, "INSTEP_USER": "us", "INSTEP_PASSWORD_FILE": "/p", "ETCDCTL_USER": "them:secret"}
    found = resolve(environ=env)
    assert (found.user, found.password_file, found.password) == ("us", "/p", None)


@pytest.mark.parametrize(
    ("env", "password"),
    [
        ({"ETCDCTL_USER": "u:p"}, "p"),
        ({"ETCDCTL_USER": "u:p:q"}, "p:q"),
        ({"ETCDCTL_USER": "u", "ETCDCTL_PASSWORD": "p"}, "p"),
        ({"ETCDCTL_USER": "u:p", "ETCDCTL_PASSWORD": "other"}, "p"),
    ],
)
def test_a_password_is_parsed_as_by_etcdctl(env: dict[str, str], password: str) -> None:
    found = resolve(environ={**A, **env})
    assert (found.user, found.password) == ("u", password)


def test_complete_settings_are_used_unchanged() -> None:
    settings = Settings(endpoints=("http://a:1",), ttl_s=30)
    assert resolve(settings, environ={"INSTEP_ETCD": "b:1"}) is settings
    assert resolve(settings, namespace="/x", environ={}).namespace == "/x"


# -- a running local etcd ------------------------------------------------------------------------------------------


def test_without_any_etcd_the_error_names_the_fix() -> None:
    with pytest.raises(SettingsError, match=r"set INSTEP_ETCD .* or start one for development with 'instep local'"):
        resolve(environ={})


def test_a_running_local_etcd_is_used_when_nothing_else_is_set() -> None:
    discovery_file().parent.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = start_of(os.getpid())
        assert started is not None
        write(LocalEtcd(endpoint=endpoint, pid=os.getpid(), started=started, version="3", data_dir="", log=""))
        found = resolve(environ={})
        assert (found.endpoints, found.origin) == ((endpoint,), "instep local")
        assert resolve(environ=A).endpoints == ("http://a:1",)


@pytest.mark.parametrize("text", ["", "nonsense", "{}", "[]", '{"pid": 1}', "[" * 100_000])
def test_a_damaged_record_of_a_local_etcd_is_ignored(text: str) -> None:
    discovery_file().parent.mkdir(parents=True)
    discovery_file().write_text(text)
    with pytest.raises(SettingsError, match="no etcd is configured"):
        resolve(environ={})


# -- what does not go together -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"INSTEP_CERT": "/c", "INSTEP_ETCD": "a:1"}, "needs its key"),
        ({"INSTEP_KEY": "/k", "INSTEP_ETCD": "a:1"}, "needs its key"),
        ({"INSTEP_CACERT": "/c", "INSTEP_ETCD": "http://a:1"}, "says http://"),
        ({"INSTEP_USER": "u", "INSTEP_ETCD": "a:1"}, "no password"),
        ({"ETCDCTL_USER": "u", "INSTEP_ETCD": "a:1"}, "no password"),
        ({"INSTEP_PASSWORD_FILE": "/p", **A}, "no user: set INSTEP_USER"),
        ({"INSTEP_ALLOW_READABLE_KEY": "maybe", **A}, "INSTEP_ALLOW_READABLE_KEY is 'maybe': set it to true or false"),
        ({"INSTEP_ALLOW_READABLE_KEY": "2", **A}, "set it to true or false"),
        ({"INSTEP_TTL_S": "soon", **A}, "whole number of seconds"),
        ({"INSTEP_TTL_S": "1.5", **A}, "whole number of seconds"),
        ({"INSTEP_TTL_S": str(MIN_TTL_S - 1), **A}, "must be between"),
        ({"INSTEP_TTL_S": str(MAX_TTL_S + 1), **A}, "must be between"),
        ({"INSTEP_STALL_TIMEOUT_S": "soon", **A}, "a number of seconds"),
        ({"INSTEP_STALL_TIMEOUT_S": "0.5", **A}, "must be between"),
        ({"INSTEP_STALL_TIMEOUT_S": "nan", **A}, "must be between"),
        ({"INSTEP_STALL_TIMEOUT_S": "inf", **A}, "must be between"),
        ({"INSTEP_GRACE_S": "soon", **A}, "a number of seconds"),
        ({"INSTEP_GRACE_S": "0", **A}, "must be between"),
        ({"INSTEP_GRACE_S": "nan", **A}, "must be between"),
        ({"INSTEP_NAMESPACE": "training", **A}, "starts with a slash"),
        ({"INSTEP_NAMESPACE": "/a//b", **A}, "not usable"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_fix(env: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        resolve(environ=env)
    assert why in str(refusal.value)


@pytest.mark.parametrize("text", ["1", "true", "TRUE", "True", "t", "yes", "Yes", "y", "on", "ON", " true "])
def test_any_spelling_of_true_sets_a_flag(text: str) -> None:
    assert resolve(environ={**A, "INSTEP_ALLOW_READABLE_KEY": text}).allow_readable_key


@pytest.mark.parametrize("text", ["", "0", "false", "FALSE", "no", "No", "off", "n", "f", " "])
def test_any_spelling_of_false_does_not(text: str) -> None:
    assert not resolve(environ={**A, "INSTEP_ALLOW_READABLE_KEY": text}).allow_readable_key


def test_the_lease_ttl_can_be_set() -> None:
    assert resolve(environ={**A, "INSTEP_TTL_S": "60"}).ttl_s == 60


def test_the_stall_timeout_can_be_set_and_reaches_the_agent() -> None:
    settings = resolve(environ={**A, "INSTEP_STALL_TIMEOUT_S": "2.5"})
    assert settings.stall_timeout_s == 2.5
    assert Settings.from_json(settings.to_json()) == settings
    assert resolve(environ=A).stall_timeout_s == 60


def test_the_grace_period_can_be_set() -> None:
    assert resolve(environ={**A, "INSTEP_GRACE_S": "120"}).grace_s == 120
    assert resolve(environ=A).grace_s == 30


# -- secrets -------------------------------------------------------------------------------------------------------


def test_no_secret_is_shown() -> None:
    settings = resolve(environ={**A, "ETCDCTL_USER": "root:hunter2"})
    for shown in (repr(settings), str(settings), f"{settings}"):
        assert "hunter2" not in shown
        assert "root" in shown


def test_a_process_of_instep_gets_all_settings() -> None:
    settings = resolve(environ={**A, "ETCDCTL_USER": "root:hunter2", "INSTEP_TTL_S": "33"})
    assert Settings.from_json(settings.to_json()) == settings
    assert json.loads(settings.to_json())["password"] == "hunter2"


def test_known_settings_of_another_version_are_used() -> None:
    settings = resolve(environ=A)
    assert Settings.from_json(json.dumps({**json.loads(settings.to_json()), "from_later": 1})) == settings


def test_a_password_over_plain_http_causes_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    for endpoints in ("https://plain-a:1", "http://plain-a:1", "http://plain-a:1"):
        resolve(environ={"INSTEP_ETCD": endpoints, "ETCDCTL_USER": "ann:hunter2"})
    assert [record.getMessage() for record in caplog.records] == [
        "the password of etcd user 'ann' is sent unencrypted to http://plain-a:1: anyone who sees that traffic can "
        "read it; use https:// endpoints"
    ]
    resolve(environ={"INSTEP_ETCD": "http://plain-b:1"})
    assert len(caplog.records) == 1


def test_processes_of_instep_inherit_no_secret() -> None:
    kept = {"PATH": "/bin", "LD_LIBRARY_PATH": "/lib", "PYTHONPATH": "/p", "LC_ALL": "C", "INSTEP_TAG": "job"}
    names = ("ETCDCTL_USER", "ETCDCTL_PASSWORD", "INSTEP_USER", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
    secrets = dict.fromkeys(names, "hunter2")
    assert process_environment({**kept, **secrets, "RANK": "3"}) == kept
