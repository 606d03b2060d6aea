"""What is typed is checked in full before anything is written."""

from __future__ import annotations

import pytest
from run_in_etcd import SCHEMA, START

from instep.control._values import check_values, parse_assignments
from instep.errors import ConfigError, SettingsError
from instep.protocol.schema import Schema
from instep.scalar import Scalar

_SCHEMA = Schema.decode(SCHEMA)


def _check(text: str, *, live: bool = True, schema: Schema = _SCHEMA) -> dict[str, Scalar]:
    return check_values(parse_assignments([text]), schema, agreed=START, live=live)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=1e-4", 1e-4),
        ("lr=1", 1.0),
        ("lr=.5", 0.5),
        ("lr=1.", 1.0),
        ("sched=cosine", "cosine"),
        ('sched="cosine"', "cosine"),
        ("note=a=b", "a=b"),
        ("note=123", "123"),
        ("note=true", "true"),
        ("note=", ""),
        ("dropout=0.1", 0.1),
    ],
)
def test_a_value_is_taken_as_its_field_holds_it(text: str, value: Scalar) -> None:
    (found,) = _check(text).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lr=fast", "not JSON"),
        ("lr=", "not JSON"),
        ("lr=NaN", "not JSON"),
        ("lr=1e999", "beyond"),
        ("lr=[1]", "not one value"),
        ("lr=true", "number"),
        ("lr=-1", "greater than 0"),
        ("lr=2", "less than or equal to 1"),
        ("sched=step", "'linear' or 'cosine'"),
        ("lrr=1", "did you mean lr?"),
        ("zzz=1", "there are lr, clip"),
        ("note=" + "x" * 70_000, "65536"),
        ("note=" + "\u0001" * 20_000, "65536"),
        ('note="\\ud800"', "lone surrogate"),
        ("note=\udcff", "UTF-8"),
        ("dropout=0.2", "fixed"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"^nothing was written: ") as caught:
        _check(text)
    assert reason in caught.value.problems[text.partition("=")[0]]
    assert len(str(caught.value)) < 400


def test_all_problems_are_told_at_once() -> None:
    texts = parse_assignments(["lr=2", "clip=-1", "note=fine"])
    with pytest.raises(ConfigError) as caught:
        check_values(texts, _SCHEMA, agreed=None, live=False)
    assert set(caught.value.problems) == {"lr", "clip"}


def test_a_fixed_hyperparameter_may_be_set_while_no_worker_lives() -> None:
    assert _check("dropout=0.2", live=False) == {"dropout": 0.2}


def test_without_a_schema_any_scalar_goes_and_words_need_quotes() -> None:
    assert _check('x="word"', schema=Schema(None)) == {"x": "word"}
    with pytest.raises(ConfigError, match="in quotes"):
        _check("x=word", schema=Schema(None))


@pytest.mark.parametrize("arguments", [["lr"], ["=1"], ["a b=1"], ["a/b=1"], ["lr=1", "lr=2"], [], ["x" * 101 + "=1"]])
def test_arguments_that_are_no_assignments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SettingsError):
        parse_assignments(arguments)
