"""The record of a view's start: written with the view, completed by the first rank at its first step."""

from __future__ import annotations

from instep.etcd import Compare
from instep.names import REPLAY_KEY
from instep.protocol.actions import FormView
from instep.protocol.keys import Keys
from instep.protocol.records import FirstStep, Origin, Snapshot, StartOfView
from instep.protocol.schema import Schema
from instep.protocol.transactions import STARTS_KEPT, SeenRevisions, Txn, for_action, write_first_step
from instep.recipes.fence import Fence
from unit.parts import SCHEMA, agreed, view

KEYS = Keys("/training", "gpt-a")
FENCE = Fence(f"{KEYS.root}election/aaaaa", 77)
HISTORY = f"{KEYS.root}history/starts/"


def formed(number: int, *, fresh: bool = True, schema: Schema = SCHEMA) -> Txn:
    start = Snapshot(values={"lr": 0.5}, plan=3, checkpoint="20-7")
    one = view({"a": {0: 10}}, number=number, fresh=fresh).model_copy(update={"start": start})
    action = FormView(one, agreed(), schema, (), None, at="2026-01-01T00:00:00")
    return for_action(action, KEYS, FENCE, SeenRevisions())


def history_ops(txn: Txn) -> list[str]:
    return [op.text.replace(HISTORY, "") for op in txn.then if HISTORY in op.text]


def put_under(txn: Txn, key: str) -> str:
    put = next(op for op in txn.then if op.text == f"put {key}")
    return str(put.wire.request_put.value.decode())


def test_a_fresh_view_records_its_start() -> None:
    txn = formed(5)
    assert history_ops(txn) == ["put 5", "delete 5/step"]
    assert StartOfView.decode(put_under(txn, KEYS.start_of(5))) == StartOfView(
        view=5, values={"lr": 0.5}, plan=3, checkpoint="20-7", at="2026-01-01T00:00:00"
    )


def test_a_continuing_view_records_no_start() -> None:
    assert history_ops(formed(5, fresh=False)) == []


def test_the_start_of_a_replay_names_its_schedule() -> None:
    txn = formed(5, schema=Schema({"properties": {}, REPLAY_KEY: "abc"}))
    assert StartOfView.decode(put_under(txn, KEYS.start_of(5))).replays == "abc"


def test_starts_of_the_last_views_are_kept() -> None:
    number = STARTS_KEPT + 5
    assert history_ops(formed(number)) == [f"put {number}", f"delete {number}/step", "delete 5", "delete 5/step"]
    assert history_ops(formed(number, fresh=False)) == ["delete 5", "delete 5/step"]


def test_the_first_step_is_written_once_and_only_for_a_fresh_view() -> None:
    first = FirstStep(step=21, origin=Origin(id="20-7", step=20, view=1, plan=3))
    txn = write_first_step(KEYS, 5, first)
    assert list(txn.compares) == [Compare.present(KEYS.start_of(5)), Compare.absent(KEYS.first_step_of(5))]
    assert FirstStep.decode(put_under(txn, KEYS.first_step_of(5))) == first
