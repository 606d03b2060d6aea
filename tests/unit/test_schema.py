"""What the schema accepts, without the training script."""

from __future__ import annotations

import contextlib
import json
import re
from enum import Enum
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from instep import Hyperparameters, fixed
from instep.names import MAX_VALUE_BYTES
from instep.protocol.schema import Schema
from instep.worker.hyper import Codec
from unit.parts import ANY


class Kind(Enum):
    ADAM = "adam"
    SGD = "sgd"


class Hyper(Hyperparameters):
    lr: float = Field(3e-4, gt=0, le=1)
    batch: int = Field(32, ge=1, multiple_of=8)
    amp: bool = False
    decay: float | None = None
    name: str = Field("run", min_length=1, max_length=8, pattern="^[a-z]+$")
    schedule: Literal["cosine", "linear", 3] = "cosine"
    kind: Kind = Kind.ADAM
    limit: int | str = 0
    dropout: float = fixed(0.1, ge=0, lt=1)


SCHEMA = Schema(Codec(Hyper).document)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1", 1.0),
        ("lr", "1e-9", 1e-9),
        ("batch", "64", 64),
        ("amp", "true", True),
        ("decay", "null", None),
        ("decay", "0.5", 0.5),
        ("name", '"gpt"', "gpt"),
        ("schedule", '"linear"', "linear"),
        ("schedule", "3", 3),
        ("kind", '"sgd"', "sgd"),
        ("limit", '"none"', "none"),
        ("limit", "-3", -3),
        ("dropout", "0", 0.0),
    ],
)
def test_a_valid_value_is_converted_to_the_type_of_its_field(name: str, text: str, value: object) -> None:
    taken = SCHEMA.parse(name, text)
    assert taken == value
    assert type(taken) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("lr", "0", "greater than 0"),
        ("lr", "1.5", "less than or equal to 1"),
        ("lr", '"0.1"', "valid number"),
        ("lr", "true", "valid number"),
        ("lr", "null", "valid number"),
        ("lr", "NaN", "not JSON"),
        ("lr", "-Infinity", "not JSON"),
        ("lr", "1e999", "beyond what a float can hold"),
        ("lr", "0.1 0.2", "not JSON"),
        ("lr", "[0.1]", "not one value"),
        ("lr", "", "not JSON"),
        ("batch", "1.5", "integer"),
        ("batch", "12", "multiple of 8"),
        ("batch", "0", "greater than or equal to 1"),
        ("batch", "true", "valid integer"),
        ("amp", "1", "valid boolean"),
        ("amp", '"true"', "valid boolean"),
        ("decay", '"much"', "valid number"),
        ("name", '"GPT"', "match pattern"),
        ("name", '""', "at least 1 character"),
        ("name", '"abcdefghi"', "at most 8 characters"),
        ("name", "gpt", "not JSON"),
        ("name", '"\\ud800"', "surrogate"),
        ("schedule", '"sine"', "'cosine'"),
        ("kind", '"lion"', "'adam'"),
        ("limit", "1.5", "integer"),
        ("momentum", "0.9", "no hyperparameter has this name"),
        ("dropout", "1", "less than 1"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_the_reason(name: str, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        SCHEMA.parse(name, text)
    assert "pydantic" not in str(refusal.value)


@pytest.mark.parametrize(
    "text", ['"' + "x" * MAX_VALUE_BYTES + '"', "9" * 5000, "[" * 10_000, '"' + "é" * 40_000 + '"']
)
def test_an_enormous_value_is_refused_with_a_short_message(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        SCHEMA.parse("name", text)
    assert len(str(refusal.value)) < 300


def test_the_largest_text_is_accepted_without_a_length_limit() -> None:
    text = json.dumps("x" * (MAX_VALUE_BYTES - 2))
    assert ANY.parse("prompt", text) == "x" * (MAX_VALUE_BYTES - 2)


def test_without_a_document_any_scalar_of_any_name_is_accepted() -> None:
    assert [ANY.parse("x", text) for text in ("1", "1.5", "true", "null", '"t"')] == [1, 1.5, True, None, "t"]
    assert ANY.any_scalar
    assert ANY.defaults() == {}
    assert not ANY.is_fixed("x")


def test_the_defaults_are_those_of_the_model() -> None:
    assert SCHEMA.defaults() == {
        name: value.value if isinstance(value, Enum) else value for name, value in Hyper().model_dump().items()
    }


def test_fixed_fields_and_text_fields_are_known() -> None:
    assert [name for name in SCHEMA.names if SCHEMA.is_fixed(name)] == ["dropout"]
    assert SCHEMA.is_text("name")
    assert SCHEMA.is_text("limit")
    assert not SCHEMA.is_text("lr")


@pytest.mark.parametrize(
    "text",
    [
        *(None, b"", b"{", b"[1]", b"null", b'"text"', b"\xff", b"[" * 100_000),
        b'{"properties": 5}',
        b'{"properties": {"lr": 5}}',
        b'{"properties": {"lr": {"anyOf": 5}}}',
        b'{"properties": {"lr": {"default": [1]}}}',
        b'{"$defs": 5}',
    ],
)
def test_a_schema_that_cannot_be_read_leaves_the_check_to_the_workers(text: bytes | None) -> None:
    assert Schema.decode(text).any_scalar


@pytest.mark.parametrize(
    "field",
    [
        {"type": "string", "pattern": "^(?=a)ab$"},
        {"type": "string", "pattern": "("},
        {"type": ["number"]},
        {"type": "number", "minimum": "x"},
        {"type": "number", "minLength": 1},
        {"enum": []},
        {"anyOf": []},
        {"anyOf": [5]},
        {"$ref": "#/$defs/loop"},
        {"$ref": "#/$defs/nowhere"},
    ],
)
def test_a_field_that_only_the_workers_can_check_takes_any_scalar(field: dict[str, object]) -> None:
    loop = {"anyOf": [{"$ref": "#/$defs/loop"}]}
    schema = Schema.decode(json.dumps({"properties": {"x": field, "lr": {"type": "number"}}, "$defs": {"loop": loop}}))
    assert schema.parse("x", "0.5") == 0.5
    assert schema.is_text("x") in (True, False)
    with pytest.raises(ValueError, match="valid number"):
        schema.parse("lr", "true")


KEYWORDS = st.sampled_from(["type", "enum", "const", "anyOf", "$ref", "minimum", "maximum", "pattern", "minLength"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["number", "string", "a", "#/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.just("default"), inner, max_size=3),
    max_leaves=8,
)


@given(
    JSON | st.fixed_dictionaries({"properties": st.fixed_dictionaries({"x": JSON}), "$defs": st.just({"a": {}}) | JSON})
)
def test_with_any_document_as_schema_a_value_is_accepted_or_refused(document: object) -> None:
    schema = Schema.decode(json.dumps(document))
    assert schema.is_text("x") in (True, False)
    assert schema.is_fixed("x") in (True, False)
    assert all(value is None or isinstance(value, (bool, int, float, str)) for value in schema.defaults().values())
    for text in ("0.5", '"a"', "null"):
        with contextlib.suppress(ValueError):
            schema.parse("x", text)


def test_a_schema_survives_a_round_trip_through_etcd() -> None:
    again = Schema.decode(SCHEMA.encode())
    assert again.digest == SCHEMA.digest
    assert again.names == tuple(sorted(SCHEMA.names))
    assert Schema.decode(ANY.encode()).any_scalar
    assert ANY.digest != SCHEMA.digest


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none() | st.text())
def test_the_schema_accepts_exactly_what_the_model_accepts(value: bool | int | float | str | None) -> None:
    """For everything that both can check: the model may know more, but then it has its own validator."""
    codec = Codec(Hyper)
    for name in SCHEMA.names:
        try:
            SCHEMA.check(name, value)
            taken = True
        except ValueError:
            taken = False
        try:
            codec.decode({name: value})
            decoded = True
        except Exception:  # noqa: BLE001  whatever the model says no with
            decoded = False
        assert taken == decoded, (name, value)
