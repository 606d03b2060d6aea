"""From the desired values in etcd to the next change."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instep.names import PREFER_KEY
from instep.protocol.desired import (
    MAX_AUTHOR,
    MAX_START_CHANGES,
    MAX_SUPERSEDED,
    SCRIPTS_OWN,
    UNSET,
    DesiredValue,
    NextChange,
    next_change,
    pending_revisions,
    settled_rejections,
    signatures,
    signed,
    start_values,
)
from instep.protocol.records import Change, Rejected
from instep.protocol.schema import Schema
from instep.scalar import Scalar, format_scalar
from unit.parts import ANY, SCHEMA, desired, rejected

AGREED = SCHEMA.defaults()
SCRIPT = Schema({**(SCHEMA.document or {}), PREFER_KEY: "script"})

TEXTS = st.sampled_from(["0.1", "0.5", "1", "32", "-1", "7", "nonsense", "[]", "true", "null"])
DESIRED = st.dictionaries(
    st.sampled_from(["lr", "clip", "batch", "dropout", "stranger"]), st.tuples(TEXTS, st.integers(1, 3))
).map(lambda found: desired(**found))


def test_desired_values_equal_to_the_agreed_ones_are_no_change() -> None:
    assert next_change(desired(lr=("0.1", 3), batch=("32", 4)), AGREED, SCHEMA, {}) is None


def test_the_same_number_in_another_notation_is_no_change() -> None:
    assert next_change(desired(lr=("1e-1", 3), clip=("1", 4)), AGREED, SCHEMA, {}) is None


def test_all_keys_of_one_revision_are_one_change_and_the_oldest_comes_first() -> None:
    shown = desired(lr=("0.5", 8), batch=("64", 7), clip=("2.0", 7))
    assert next_change(shown, AGREED, SCHEMA, {}) == NextChange(7, {"batch": 64, "clip": 2.0})
    assert next_change(shown, {**AGREED, "batch": 64, "clip": 2.0}, SCHEMA, {}) == NextChange(8, {"lr": 0.5})


def test_a_value_agreed_already_is_no_part_of_its_change() -> None:
    wanted = next_change(desired(lr=("0.5", 7), clip=("1.0", 7)), AGREED, SCHEMA, {})
    assert wanted == NextChange(7, {"lr": 0.5})


def test_a_value_that_does_not_validate_takes_its_companions_with_it() -> None:
    wanted = next_change(desired(lr=("5", 7), clip=("2.0", 7)), AGREED, SCHEMA, {})
    assert wanted is not None
    assert wanted.values == {}
    by_name = {item.name: item for item in wanted.rejections}
    assert by_name.keys() == {"lr", "clip"}
    assert "less than or equal to 1" in by_name["lr"].reason
    assert "together with lr" in by_name["clip"].reason
    assert (by_name["clip"].value, by_name["clip"].revision) == ("2.0", 7)


def test_a_companion_that_would_have_changed_nothing_is_not_blamed() -> None:
    wanted = next_change(desired(lr=("5", 7), clip=("1.0", 7)), AGREED, SCHEMA, {})
    assert wanted is not None
    assert [item.name for item in wanted.rejections] == ["lr"]


def test_a_rejected_revision_does_not_hold_up_the_next_one() -> None:
    shown = desired(lr=("5", 7), batch=("64", 8))
    assert next_change(shown, AGREED, SCHEMA, rejected("lr", 7)) == NextChange(8, {"batch": 64})


def test_a_rejection_ends_when_the_key_is_written_again() -> None:
    assert next_change(desired(lr=("0.5", 9)), AGREED, SCHEMA, rejected("lr", 7)) == NextChange(9, {"lr": 0.5})


def test_a_fixed_value_is_refused_while_the_run_trains() -> None:
    wanted = next_change(desired(dropout=("0.5", 7)), AGREED, SCHEMA, {})
    assert wanted is not None
    assert [(item.name, item.by) for item in wanted.rejections] == [("dropout", "fixed")]


def test_a_fixed_value_put_back_to_the_agreed_one_is_no_change() -> None:
    assert next_change(desired(dropout=("0.1", 7)), AGREED, SCHEMA, {}) is None


def test_without_a_schema_any_new_name_with_a_scalar_is_a_change() -> None:
    assert next_change(desired(temperature=('"hot"', 3)), {}, ANY, {}) == NextChange(3, {"temperature": "hot"})
    wanted = next_change(desired(temperature=("[1]", 3)), {}, ANY, {})
    assert wanted is not None
    assert [item.name for item in wanted.rejections] == ["temperature"]


def test_a_long_text_is_recorded_cut_short() -> None:
    wanted = next_change(desired(lr=("9" * 5000, 3)), AGREED, SCHEMA, {})
    assert wanted is not None
    assert len(wanted.rejections[0].value) == 200
    assert len(wanted.rejections[0].encode()) < 1000


# -- what is done with ---------------------------------------------------------------------------------------------


def test_a_rejection_is_settled_when_its_key_is_gone_or_written_again() -> None:
    held = {**rejected("lr", 7), **rejected("clip", 7), **rejected("batch", 7)}
    shown = desired(lr=("5", 7), clip=("2.0", 9))
    assert set(settled_rejections(shown, AGREED, SCHEMA, held)) == {"clip", "batch"}


def test_a_fixed_value_that_a_restart_took_is_settled() -> None:
    held = rejected("dropout", 7, by="fixed")
    assert settled_rejections(desired(dropout=("0.5", 7)), AGREED, SCHEMA, held) == ()
    assert settled_rejections(desired(dropout=("0.5", 7)), {**AGREED, "dropout": 0.5}, SCHEMA, held) == ("dropout",)


def test_a_revision_is_pending_until_it_is_agreed_or_rejected() -> None:
    shown = desired(lr=("0.5", 7), clip=("1.0", 8), batch=("-4", 9))
    assert pending_revisions(shown, AGREED, SCHEMA, {}) == {7, 9}
    assert pending_revisions(shown, {**AGREED, "lr": 0.5}, SCHEMA, rejected("batch", 9)) == frozenset()


# -- a fresh start -------------------------------------------------------------------------------------------------


def test_a_fresh_view_starts_from_the_desired_values_over_the_defaults() -> None:
    start = start_values(desired(lr=("0.5", 7)), {**AGREED, "clip": 9.0}, SCHEMA, {})
    assert start.values == {**AGREED, "lr": 0.5}
    assert start.rejections == ()


def test_a_fresh_start_uses_a_fixed_value() -> None:
    held = rejected("dropout", 7, by="fixed")
    assert start_values(desired(dropout=("0.5", 7)), AGREED, SCHEMA, held).values["dropout"] == 0.5


def test_an_unusable_value_falls_back_to_the_agreed_one_or_else_the_default() -> None:
    shown = desired(lr=("nonsense", 7), batch=("0", 8))
    start = start_values(shown, {"lr": 0.25}, SCHEMA, {})
    assert (start.values["lr"], start.values["batch"]) == (0.25, 32)
    assert {(item.name, item.revision) for item in start.rejections} == {("lr", 7), ("batch", 8)}


def test_an_agreed_value_that_the_new_schema_refuses_is_no_fallback() -> None:
    start = start_values(desired(lr=("nonsense", 7)), {"lr": 50.0, "gone": 1}, SCHEMA, {})
    assert start.values == AGREED


def test_a_value_that_a_worker_refused_is_not_used_at_a_start() -> None:
    held = rejected("lr", 7, by="worker")
    start = start_values(desired(lr=("0.5", 7)), {"lr": 0.25}, SCHEMA, held)
    assert start.values["lr"] == 0.25
    assert [item.by for item in start.rejections] == ["worker"]
    assert start_values(desired(lr=("0.5", 9)), {"lr": 0.25}, SCHEMA, held).values["lr"] == 0.5


def test_an_agreed_value_that_workers_now_refuse_is_no_fallback() -> None:
    held = rejected("lr", 7, by="worker")
    assert start_values(desired(lr=("0.5", 7)), {"lr": 0.5}, SCHEMA, held).values["lr"] == AGREED["lr"]


def test_a_worker_validates_the_accepted_values_revision_by_revision() -> None:
    shown = desired(lr=("0.5", 7), clip=("2.0", 7), batch=("8", 5), dropout=("nonsense", 6))
    start = start_values(shown, {**AGREED, "lr": 0.25}, SCHEMA, {})
    assert start.dry_run is not None
    assert start.dry_run.values == start.values
    assert start.dry_run.base == {**AGREED, "lr": 0.25}
    assert start.dry_run.groups() == ((5, {"batch": 8}), (7, {"clip": 2.0, "lr": 0.5}))


def test_a_refused_revision_is_rejected_whole_and_not_used_at_the_next_start() -> None:
    shown = desired(lr=("0.5", 7), clip=("2.0", 7), batch=("8", 5))
    dry_run = start_values(shown, None, SCHEMA, {}).dry_run
    assert dry_run is not None
    rejections = dry_run.rejections({7: {"clip": "clip must be above lr"}})
    assert {item.name: item.reason for item in rejections} == {
        "clip": "clip must be above lr",
        "lr": "it was written together with clip, which was rejected",
    }
    again = start_values(shown, None, SCHEMA, {item.name: item for item in rejections})
    assert again.values == {**AGREED, "batch": 8}
    assert again.dry_run is not None
    assert again.dry_run.groups() == ((5, {"batch": 8}),)


def test_no_dry_run_without_desired_values_or_without_a_schema() -> None:
    assert start_values({}, None, SCHEMA, {}).dry_run is None
    assert start_values(desired(lr=("0.5", 7)), None, ANY, {}).dry_run is None


@given(DESIRED)
def test_a_fresh_start_always_has_values_that_the_schema_takes(shown: dict[str, DesiredValue]) -> None:
    start = start_values(shown, None, SCHEMA, {})
    assert start.values.keys() == set(SCHEMA.names)
    for name, value in start.values.items():
        assert SCHEMA.check(name, value) == value
    assert all(item.name in shown for item in start.rejections)


@given(DESIRED)
def test_planning_all_changes_ends_and_leaves_nothing_pending(
    shown: dict[str, DesiredValue],
) -> None:
    values: dict[str, Scalar] = dict(AGREED)
    held: dict[str, Rejected] = {}
    seen: list[int] = []
    while (wanted := next_change(shown, values, SCHEMA, held)) is not None:
        assert bool(wanted.values) != bool(wanted.rejections)
        values |= wanted.values
        held |= {item.name: item for item in wanted.rejections}
        seen.append(wanted.revision)
    assert seen == sorted(set(seen))
    assert pending_revisions(shown, values, SCHEMA, held) == frozenset()
    assert all(SCHEMA.parse(name, format_scalar(value)) == value for name, value in values.items())


# -- changes made while no rank trains --------------------------------------------------------------------------------


def test_a_fresh_start_knows_which_values_were_written_while_no_worker_trained() -> None:
    shown = desired(lr=("0.5", 7), clip=("2.0", 7), batch=("64", 5), dropout=("0.1", 9))
    start = start_values(shown, {**AGREED, "lr": 0.25, "batch": 64}, SCHEMA, {})
    assert [(item.revision, item.names, item.previous) for item in start.changes] == [
        (7, ("clip", "lr"), {"lr": 0.25, "clip": 1.0})
    ]


def test_before_the_first_start_a_value_is_changed_from_its_default() -> None:
    start = start_values(desired(lr=("0.5", 7)), None, SCHEMA, {})
    assert [(item.names, item.previous) for item in start.changes] == [(("lr",), {"lr": AGREED["lr"]})]
    unknown = start_values(desired(lr=("0.5", 7)), None, ANY, {})
    assert [(item.names, item.previous) for item in unknown.changes] == [(("lr",), {})]


def test_an_unset_value_or_a_new_script_value_is_a_change_of_the_start() -> None:
    start = start_values(desired(clip=("2.0", 7)), {**AGREED, "lr": 0.25, "clip": 1.5}, SCHEMA, {})
    assert [(item.revision, item.names, item.previous, item.reason) for item in start.changes] == [
        (0, ("lr",), {"lr": 0.25}, SCRIPTS_OWN),
        (7, ("clip",), {"clip": 1.5}, None),
    ]
    free = start_values({}, {"lr": 0.25}, ANY, {})
    assert [(item.names, item.previous, item.reason) for item in free.changes] == [(("lr",), {"lr": 0.25}, UNSET)]


def test_with_a_preferred_script_its_values_are_used_and_no_desired_one_is_planned() -> None:
    shown = desired(lr=("0.5", 7), batch=("64", 7), clip=("1.0", 8), dropout=("nonsense", 9))
    start = start_values(shown, {**AGREED, "batch": 16}, SCRIPT, {}, prefer_script=True)
    assert start.values == AGREED
    assert [(item.name, item.revision, item.by) for item in start.rejections] == [
        ("batch", 7, "script"),
        ("lr", 7, "script"),
        ("dropout", 9, "schema"),
    ]
    assert [(item.names, item.previous) for item in start.changes] == [(("batch",), {"batch": 16})]
    first = start_values(shown, None, SCRIPT, {}, prefer_script=True)
    assert [(item.names, item.previous) for item in first.changes] == [(("batch", "lr"), {"batch": 64, "lr": 0.5})]
    held = {item.name: item for item in start.rejections}
    assert next_change(shown, start.values, SCRIPT, held) is None
    assert pending_revisions(shown, start.values, SCRIPT, held) == frozenset()
    assert settled_rejections(shown, start.values, SCRIPT, held) == ()
    later = shown | desired(lr=("0.5", 12))  # the same value, set again while it trains
    assert next_change(later, start.values, SCRIPT, held) == NextChange(12, {"lr": 0.5})


def test_a_restart_keeps_superseded_values_out_and_later_changes_in() -> None:
    shown = desired(lr=("0.5", 7), batch=("64", 12))
    held = rejected("lr", 7, by="script")
    restarted = start_values(shown, {**AGREED, "batch": 64}, SCRIPT, held)
    assert restarted.values == {**AGREED, "batch": 64}
    assert [item.name for item in restarted.rejections] == ["lr"]
    assert start_values(shown, {**AGREED, "batch": 64}, SCHEMA, held).values == {**AGREED, "lr": 0.5, "batch": 64}


def test_the_number_of_superseded_values_is_bounded() -> None:
    names = [f"v{number:03}" for number in range(MAX_SUPERSEDED + 3)]
    fields = {name: {"type": "integer", "default": 0} for name in names}
    schema = Schema({"properties": fields, PREFER_KEY: "script"})
    shown = {name: DesiredValue(name, "1", number) for number, name in enumerate(names, 1)}
    start = start_values(shown, None, schema, {}, prefer_script=True)
    assert [name for name in names if start.values[name] == 1] == names[-3:]
    held = {item.name: item for item in start.rejections}
    assert len(held) == MAX_SUPERSEDED
    assert next_change(shown, start.values, schema, held) is None


def test_a_value_that_a_start_rejects_is_no_change_of_it() -> None:
    assert start_values(desired(lr=("nonsense", 7)), AGREED, SCHEMA, {}).changes == ()


def test_very_many_changes_before_a_start_are_recorded_with_a_bound() -> None:
    count = MAX_START_CHANGES + 7
    shown = {f"v{number}": DesiredValue(f"v{number}", "1", number + 1) for number in range(count)}
    changes = start_values(shown, None, ANY, {}).changes
    assert len(changes) == MAX_START_CHANGES
    assert sum(len(change.names) for change in changes) == count
    assert (changes[0].revision, changes[-1].revision) == (0, count)


def test_a_change_is_signed_by_its_mark_or_by_the_record_that_refused_it() -> None:
    marks = {7: Change(id="abc", names=("lr",), author="ann" * 200, reason="slower")}
    held = rejected("dropout", 9, by="fixed", author="bob", why="later", change_id="def")
    start = start_values(desired(lr=("0.5", 7), dropout=("0.5", 9), clip=("2.0", 11)), AGREED, SCHEMA, held)
    found = {
        item.names: (item.author, item.reason, item.change_id)
        for item in signed(start.changes, signatures(marks, held))
    }
    assert found == {
        ("lr",): (("ann" * 200)[:MAX_AUTHOR], "slower", "abc"),
        ("dropout",): ("bob", "later", "def"),
        ("clip",): (None, None, None),
    }
