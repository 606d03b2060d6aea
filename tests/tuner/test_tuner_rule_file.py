"""Rule files: what they change, and the one sentence that a bad one gives."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.errors import SettingsError
from instep.tuner.rule_file import read_rules
from instep.tuner.rules import RULE_KINDS, Rules, Spike, Threshold
from instep.tuner.sample import Parameter
from instep.tuner.state import decode_state, encode_state, initial

NAMES = (
    "version",
    "rules",
    "brakes",
    "bounds",
    "kind",
    "z",
    "min",
    "metric",
    "action",
    "for",
    "lr",
    "above",
    "brakes.lr",
)
PARAMETERS = {"lr": Parameter(0.01, 0.0, 1.0), "clip": Parameter(1.0, 0.1)}


def test_an_empty_file_gives_the_defaults() -> None:
    assert read_rules("") == Rules()
    assert set(Rules().rules) == set(RULE_KINDS) - {"threshold"}


def test_a_file_changes_what_it_names_and_nothing_else() -> None:
    rules = read_rules("[rules.spike]\nz = 8\n\n[brakes]\nbudget_per_run = 3\n")
    spike = rules.rules["spike"]
    assert isinstance(spike, Spike)
    assert (spike.z, spike.hits) == (8.0, 4)
    assert rules.brakes.budget_per_run == 3
    assert rules.rules["level"] == Rules().rules["level"]


def test_several_rules_may_be_of_one_kind() -> None:
    rules = read_rules('[rules.hot]\nkind = "threshold"\nmetric = "temp"\nabove = 80\nfor = 10\naction = "pause"')
    hot = rules.rules["hot"]
    assert isinstance(hot, Threshold)
    assert (hot.above, hot.for_steps, hot.action) == (80.0, 10, "pause")


def test_a_rule_may_be_switched_off() -> None:
    assert "spike" not in dict(read_rules("[rules.spike]\nenabled = false").enabled)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[rules.spike]\nz = nan", "line 2: rules.spike.z = nan: it must be a finite number"),
        ("[rules.spike]\nz = inf", "line 2: rules.spike.z = inf: it must be a finite number"),
        ("# mine\n\n[rules.spike]\nzz = 3", "line 4: there is no setting 'zz' (did you mean 'z'?): there are enabled"),
        ("[rules.spiek]\nz = 3", "line 1: there is no kind of rule 'spiek' (did you mean 'spike'?)"),
        ('[rules.x]\nkind = "spiek"', "line 2: there is no kind of rule 'spiek' (did you mean 'spike'?): write one of"),
        ("rule = 3", "line 1: there is no setting 'rule' (did you mean 'rules'?)"),
        ("[brakes]\nhold_off = 3", "line 2: there is no setting 'hold_off' (did you mean 'hold_off_steps'?)"),
        ("[brakes]\nhold_off_steps = -1", "line 2: brakes.hold_off_steps = -1: it must be greater than or equal to 1"),
        ("[brakes]\nhold_off_steps = 1.5", "line 2: brakes.hold_off_steps = 1.5: it must be a valid integer"),
        ("brakes.lr_factor = 1.5", "line 1: brakes.lr_factor = 1.5: it must be less than 1"),
        ('[rules.t]\nkind = "threshold"\nabove = 3', "line 1: metric is missing: add it to [rules.t]"),
        ('[rules.t]\nkind = "threshold"\nmetric = "x"', "line 1: rules.t: give either above or below"),
        ("[rules.spike]\nhits = 9", "line 1: rules.spike: hits of 9 are more than the 5 steps they are counted in"),
        ('[rules.spike]\naction = "stop"', "line 2: rules.spike.action = stop: it must be 'alert', 'take_back'"),
        ('[rules.gpu_low]\naction = "pause"', "line 2: rules.gpu_low.action = pause: it must be 'alert'"),
        ("rules = 3", "line 1: rules is a table: write [rules.spike] and its settings below"),
        ("[rules]\nspike = 3", "line 2: a rule is a table: write [rules.spike] and its settings below"),
        ("version = 2", "line 1: version = 2: it must be 1"),
        ("[bounds.lr]\nmin = 1e-3\nmax = 1e-5", "line 1: bounds.lr: min 0.001 is above max 1e-05"),
        ("[bounds.lr]\nmin = 2.0", "line 2: min 2 is above 1, the most that the schema allows for lr: lower it"),
        ("[bounds.clip]\nmax = 0.01", "line 2: max 0.01 is below 0.1, the least that the schema allows for clip"),
        ("[bounds.foo]\nmin = 1.0", "line 1: the run has no hyperparameter 'foo'; it has lr, clip"),
        (
            '[rules.x]\nkind = ["spike"]',
            "line 2: there is no kind of rule ['spike'] (did you mean 'spike'?)",
        ),
        ("bounds = 3", "line 1: bounds = 3: it must be"),
        ("[rules.spike]\nz = {a = 1}", "line 2: rules.spike.z: it must be a valid number"),
        ("[rules]\nspike = {z = -1}", "line 2: rules.spike.z = -1: it must be greater than 0"),
        ("[rules.spike]\nz = 2020-01-01", "line 2: rules.spike.z = 2020-01-01: it must be a valid number"),
    ],
)
def test_a_bad_file_gives_one_sentence_with_the_line_and_the_fix(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_rules(text, PARAMETERS)
    assert str(caught.value).startswith(f"rule file, {sentence}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["z = ", "[rules", "a = 1\na = 2", "x = " + "[" * 5000, "x = " + "1" * 5000])
def test_a_file_that_is_not_toml_says_so(text: str) -> None:
    with pytest.raises(SettingsError, match="the rule file is not TOML: "):
        read_rules(text)


def test_a_file_with_two_mistakes_names_the_first() -> None:
    with pytest.raises(SettingsError, match="line 2: "):
        read_rules("[rules.spike]\nz = -1.0\n[brakes]\nmax_age_s = -1.0")


def test_bounds_are_checked_only_when_the_schema_is_known() -> None:
    assert read_rules("[bounds.foo]\nmin = 1.0").bounds["foo"].min == 1.0


def test_a_rule_that_does_not_exist_cannot_be_armed() -> None:
    with pytest.raises(SettingsError, match="there is no rule 'spiek' to arm: the rules are nonfinite, spike"):
        initial(armed=("spiek",))


def test_all_arms_every_rule_and_nothing_is_armed_by_default() -> None:
    assert initial().armed == ()
    assert initial(armed=("all",)).armed == tuple(Rules().rules)


def test_a_state_of_another_version_is_refused() -> None:
    text = encode_state(initial()).replace('"version":1', '"version":7', 1)
    with pytest.raises(SettingsError, match="has version 7, this program reads version 1"):
        decode_state(text)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1, "step": "x"}', "[" * 100_000])
def test_a_text_that_is_not_a_state_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        decode_state(text)


TABLES = ("rules", "brakes", "bounds", "bounds.lr", "rules.spike", "rules.x", "x.y", "rules.x.z")
VALUES = ("1", "-1.5", "nan", '"alert"', "[1]", "{a = 1}", "true")
LINES = st.sampled_from(
    [
        *(f"[{table}]" for table in TABLES),
        *(f"{name} = {value}" for name in NAMES for value in VALUES),
        "[[rules]]",
        'kind = "threshold"',
        'metric = "loss"',
    ]
)


@given(st.lists(LINES, max_size=6))
def test_no_file_raises_anything_but_a_sentence(lines: list[str]) -> None:
    with suppress(SettingsError):
        read_rules("\n".join(lines), PARAMETERS)
