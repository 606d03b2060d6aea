"""Names become parts of keys, so none may leave its prefix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.errors import SettingsError
from instep.names import (
    MAX_LENGTH,
    check_hyperparameter_name,
    check_namespace,
    check_run_name,
    is_hyperparameter_name,
)
from instep.protocol.keys import Keys, last_part

CHECKS = [check_run_name, check_hyperparameter_name]
BAD = ["", "a/b", "../x", ".", "..", ".hidden", "-x", "_x", "a b", "a\n", "\x00", "ä", "a*", "x" * (MAX_LENGTH + 1)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["a", "gpt-a", "lr", "adam.beta_1", "0", "A-b_c.d", "x" * MAX_LENGTH])
def test_a_plain_name_is_accepted(check: Callable[[object], str], name: str) -> None:
    assert check(name) == name
    assert is_hyperparameter_name(name)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", BAD)
def test_a_name_that_could_not_be_part_of_a_key_is_refused_with_the_rule(
    check: Callable[[object], str], name: str
) -> None:
    with pytest.raises(SettingsError, match="letters, digits") as refusal:
        check(name)
    assert len(str(refusal.value)) < 300
    assert not is_hyperparameter_name(name)


@pytest.mark.parametrize("check", [*CHECKS, check_namespace])
@pytest.mark.parametrize("name", [None, 7, b"lr", ["lr"]])
def test_a_name_that_is_not_text_is_refused(check: Callable[[object], str], name: object) -> None:
    with pytest.raises(SettingsError, match="must be text"):
        check(name)


@pytest.mark.parametrize(("given_", "clean"), [("/training", "/training"), ("/a/b/", "/a/b"), ("/a.b-c_d", "/a.b-c_d")])
def test_a_namespace_loses_its_last_slash(given_: str, clean: str) -> None:
    assert check_namespace(given_) == clean


@pytest.mark.parametrize("namespace", ["", "/", "training", "//a", "/a//b", "/a b", "/../x", "/a\n", "/" + "x" * 200])
def test_a_namespace_that_could_hold_another_is_refused(namespace: str) -> None:
    with pytest.raises(SettingsError, match="not usable"):
        check_namespace(namespace)


@given(st.text(max_size=120), st.text(max_size=120))
def test_no_name_leaves_its_run(run: str, name: str) -> None:
    try:
        keys = Keys("/training", check_run_name(run))
        key = keys.config_of(check_hyperparameter_name(name))
    except SettingsError:
        return
    assert key.startswith(f"/training/{run}/config/")
    assert key.count("/") == 4
    assert last_part(key) == name


def test_no_key_of_a_run_is_a_prefix_of_another_runs_keys() -> None:
    assert not Keys("/training", "gpt-a").root.startswith(Keys("/training", "gpt").root)


def test_the_prefix_that_every_agent_watches_holds_no_report() -> None:
    keys = Keys("/training", "gpt")
    for report in (keys.acks, keys.receipts, keys.members, keys.left, keys.metrics, keys.schemas):
        assert not report.startswith(keys.state)
    for down in (keys.view, keys.agreed, keys.leader, keys.plans, keys.rejected, keys.refused, keys.forming):
        assert down.startswith(keys.state)


def test_one_watch_sees_a_put_and_its_author() -> None:
    keys = Keys("/training", "gpt")
    assert keys.config.startswith(keys.desires)
    assert keys.changes.startswith(keys.desires)
    assert not keys.state.startswith(keys.desires)
