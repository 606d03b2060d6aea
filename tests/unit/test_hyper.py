"""Hyperparameters as a script declares them and reads them."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator, model_validator

import instep
from instep import ConfigError, FreeConfig, Hyperparameters, SettingsError, fixed, join
from instep.names import FIXED_KEY
from instep.protocol.schema import Schema
from instep.worker.hyper import Codec


class Kind(Enum):
    ADAM = "adam"


class Hyper(Hyperparameters):
    lr: float = Field(3e-4, gt=0, le=1)
    batch: int = 32
    kind: Kind = Kind.ADAM
    schedule: Literal["cosine", "linear"] = "cosine"
    decay: float | None = None
    dropout: float = fixed(0.1, ge=0, lt=1)


def test_agreed_values_become_a_frozen_object_with_the_defaults_for_the_rest() -> None:
    config = Codec(Hyper).decode({"lr": 0.5, "decay": 0.1})
    assert (config.lr, config.decay, config.batch, config.kind) == (0.5, 0.1, 32, Kind.ADAM)
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 1.0


def test_a_whole_number_is_a_float_where_a_float_is_declared() -> None:
    config = Codec(Hyper).decode({"lr": 1})
    assert isinstance(config.lr, float)


def test_a_fixed_field_keeps_its_constraints_and_is_marked() -> None:
    document = Codec(Hyper).document
    assert document is not None
    assert document["properties"]["dropout"][FIXED_KEY] is True
    assert document["properties"]["dropout"]["exclusiveMaximum"] == 1
    assert FIXED_KEY not in document["properties"]["lr"]


@pytest.mark.parametrize(
    ("values", "name", "why"),
    [
        ({"lr": 5.0}, "lr", "less than or equal to 1"),
        ({"lr": "0.5"}, "lr", "valid number"),
        ({"lr": True}, "lr", "valid number"),
        ({"batch": 1.5}, "batch", "valid integer"),
        ({"kind": "lion"}, "kind", "'adam'"),
        ({"momentum": 0.9}, "momentum", "not permitted"),
    ],
)
def test_values_that_do_not_fit_are_named_with_their_reasons(values: dict[str, Any], name: str, why: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Codec(Hyper).decode({"decay": 0.1, **values})
    assert refusal.value.problems.keys() == {name}
    assert why in refusal.value.problems[name]
    assert name in str(refusal.value)


def test_all_values_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError) as refusal:
        Codec(Hyper).decode({"lr": 5.0, "batch": "x"})
    assert refusal.value.problems.keys() == {"lr", "batch"}


class Even(Hyperparameters):
    batch: int = 32

    @field_validator("batch")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


class Together(Hyperparameters):
    warmup: int = 10
    total: int = 100

    @model_validator(mode="after")
    def _in_order(self) -> Together:
        if self.warmup > self.total:
            raise ValueError("warmup is longer than the whole")
        return self


def test_a_python_validator_is_applied() -> None:
    assert Codec(Even).decode({"batch": 4}).batch == 4
    with pytest.raises(ConfigError, match="must be even") as refusal:
        Codec(Even).decode({"batch": 3})
    assert refusal.value.problems.keys() == {"batch"}


def test_a_validator_over_several_fields_is_applied() -> None:
    with pytest.raises(ConfigError, match="longer than the whole") as refusal:
        Codec(Together).decode({"warmup": 200, "total": 100})
    assert refusal.value.problems


def test_a_default_that_does_not_fit_its_own_field_is_found_when_the_run_is_joined() -> None:
    class Wrong(Hyperparameters):
        lr: float = Field(5.0, le=1)

    with pytest.raises((ConfigError, SettingsError), match="lr"):
        Codec(Wrong).decode({})


# -- what cannot be declared ---------------------------------------------------------------------------------------


def declared(annotation: Any, default: Any = ...) -> type[Hyperparameters]:
    namespace = {"__annotations__": {"x": annotation}, "__module__": __name__}
    return type("Declared", (Hyperparameters,), namespace if default is ... else {**namespace, "x": default})


@pytest.mark.parametrize(
    ("annotation", "default", "why"),
    [
        (float, ..., "has no default"),
        (float, Field(gt=0), "has no default"),
        (float, Field(default_factory=lambda: 0.1), "from a function"),
        (list[float], [0.9, 0.99], "does not hold one scalar"),
        (tuple[float, float], (0.9, 0.99), "does not hold one scalar"),
        (dict[str, float], {}, "does not hold one scalar"),
        (list[int] | int, 5, "does not hold one scalar"),
        (Any, 5, "does not hold one scalar"),
        (float, Field(0.1, alias="learning-rate"), "alias"),
        (float, Field(0.1, validation_alias="learning-rate"), "alias"),
        (float, math.inf, "finite"),
        (float, math.nan, "finite"),
    ],
    ids=lambda part: None,
)
def test_a_value_that_no_key_can_hold_is_refused_before_any_connection(annotation: Any, default: Any, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as refusal:
        Codec(declared(annotation, default))
    assert "Declared.x" in str(refusal.value)


def test_a_nested_model_is_no_scalar() -> None:
    class Inner(BaseModel):
        lr: float = 0.1

    with pytest.raises(SettingsError, match="does not hold one scalar"):
        Codec(declared(Inner, Inner()))


def test_a_field_that_has_no_schema_is_refused() -> None:
    with pytest.raises(SettingsError, match="plain scalar fields"):
        Codec(declared(Callable[[], int], print))


def test_a_name_that_cannot_be_part_of_a_key_is_refused() -> None:
    name = "x" * 101
    model = type("Long", (Hyperparameters,), {"__annotations__": {name: float}, name: 0.1, "__module__": __name__})
    with pytest.raises(SettingsError, match="not usable"):
        Codec(model)


@pytest.mark.parametrize("model", [Hyper(), dict, {"lr": 0.1}, "Hyper", 5, float])
def test_a_schema_that_is_no_hyperparameters_class_is_refused(model: object) -> None:
    with pytest.raises(SettingsError, match=r"subclass of instep\.Hyperparameters"):
        Codec(model)


def test_join_refuses_such_a_class_before_any_connection() -> None:
    with pytest.raises(SettingsError, match="has no default"):
        instep.join("gpt", declared(float), etcd="http://127.0.0.1:1")


@pytest.mark.parametrize(("annotation", "default"), [(Decimal, Decimal("1.5")), (bool, True), (str, ""), (None, None)])
def test_other_scalars_can_be_declared(annotation: Any, default: Any) -> None:
    codec = Codec(declared(annotation, default))
    assert codec.decode({}).x == default


# -- what a start can do without -----------------------------------------------------------------------------------


class Ordered(instep.Hyperparameters):
    """`low` must stay below `high`, which no JSON Schema can express, and 13 is forbidden."""

    low: float = 1.0
    high: float = 2.0
    seed: int = 0

    @model_validator(mode="after")
    def _in_order(self) -> Ordered:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    @field_validator("seed")
    @classmethod
    def _lucky(cls, seed: int) -> int:
        if seed == 13:
            raise ValueError("13 is not lucky")
        return seed


DEFAULTS = {"low": 1.0, "high": 2.0, "seed": 0}


def refused(*groups: tuple[int, dict[str, Any]], base: dict[str, Any] = DEFAULTS) -> dict[int, dict[str, str]]:
    values = dict(base)
    for _, change in groups:
        values.update(change)
    return dict(Codec(Ordered).refusals(values, base, groups))


def test_values_that_fit_together_are_all_accepted_in_any_order() -> None:
    assert refused((5, {"low": 7.0}), (6, {"high": 9.0}), (7, {"seed": 4})) == {}


def test_only_what_the_validators_refuse_is_left_out_with_its_reason() -> None:
    assert refused((5, {"seed": 13}), (6, {"high": 9.0})) == {5: {"seed": "value error, 13 is not lucky"}}
    assert refused((5, {"low": 7.0}), (6, {"seed": 3})) == {5: {"low": "value error, low must be below high"}}


def test_a_value_that_needs_a_later_one_is_accepted_with_it() -> None:
    assert refused((5, {"low": 7.0}), (6, {"high": 9.0}), (7, {"seed": 13})).keys() == {7}


def test_values_written_together_are_left_out_together() -> None:
    assert refused((5, {"seed": 13, "high": 9.0})).keys() == {5}


# -- without a class -----------------------------------------------------------------------------------------------


def test_without_a_class_the_config_is_a_read_only_mapping() -> None:
    config: Any = Codec(None).decode({"lr": 0.5, "name": "x"})
    assert type(config) is FreeConfig
    assert (config["lr"], config.lr, dict(config), len(config)) == (0.5, 0.5, {"lr": 0.5, "name": "x"}, 2)
    assert repr(config) == "FreeConfig(lr=0.5, name='x')"
    with pytest.raises(TypeError):
        config["lr"] = 1.0
    with pytest.raises(AttributeError):
        config.lr = 1.0


def test_a_name_that_is_not_set_is_an_attribute_error_that_names_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"no hyperparameter 'lr' is set; there are \['batch'\]"):
        _ = FreeConfig({"batch": 1}).lr
    with pytest.raises(KeyError):
        FreeConfig({})["lr"]


def test_a_free_config_is_a_copy() -> None:
    values: dict[str, Any] = {"lr": 0.5}
    config = FreeConfig(values)
    values["lr"] = 1.0
    assert config.lr == 0.5


def test_a_free_config_can_be_copied_and_pickled() -> None:
    config = FreeConfig({"lr": 0.5})
    assert dict(copy.deepcopy(config)) == dict(pickle.loads(pickle.dumps(config))) == {"lr": 0.5}


def test_the_schema_that_ranks_compare_holds_the_preference() -> None:
    class Own(Hyperparameters):
        lr: float = 0.004

    plain, preferred = Schema(Codec(Own).document), Schema(Codec(Own, prefer_script=True).document)
    assert (plain.prefers_script, preferred.prefers_script) == (False, True)
    assert plain.digest != preferred.digest
    assert plain.defaults() == preferred.defaults()


@pytest.mark.parametrize(
    ("schema", "more", "said"),
    [
        (Hyperparameters, {"prefer": "config"}, "etcd"),
        (None, {"prefer": "script"}, "needs a schema"),
        (Hyperparameters, {"prefer": "script", "replay": "a.json"}, "exclude each other"),
    ],
)
def test_an_unknown_preference_is_refused_before_any_connection(schema: Any, more: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        join("gpt-a", schema, rank=0, world_size=1, **more)  # type: ignore[call-overload]


def test_values_that_are_not_the_scripts_own_are_named_with_both() -> None:
    class Own(Hyperparameters):
        lr: float = 0.004
        batch: int = 32
        name: str = "adam"

    codec = Codec(Own)
    assert codec.differences({"lr": 0.01, "batch": 32, "name": "sgd"}) == [
        "lr=0.01 (script: 0.004)",
        'name="sgd" (script: "adam")',
    ]
    assert codec.differences({"lr": 0.004}) == []
    assert Codec(None).differences({"lr": 1}) == []
