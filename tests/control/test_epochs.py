"""What status and history tell of an etcd whose history went back."""

from __future__ import annotations

import json

from run_in_etcd import RunInEtcd, with_client

from instep.cli._output import facts_console, plain
from instep.cli._panel import status_page
from instep.control import EpochFacts, History, Keys, Status, history, status
from instep.coordination.records import Epoch
from instep.coordination.transactions import raise_epoch
from instep.etcd import Client, Op
from instep.testing import EtcdServer

WENT_BACK = Epoch(
    number=1,
    why="etcd's history went back: its cluster id is b, and was a",
    before=812,
    after=640,
    at="2026-11-30T00:00:00+00:00",
)
CONFLICT = (
    "rank 0 holds decision 2 (aa), rank 3 holds decision 2 (bb), and neither follows from the other: they train with "
    "different values"
)


def _status(etcd: EtcdServer, namespace: str, epoch: Epoch | None) -> tuple[Status, str]:
    """What is told while `epoch` stands, and the page that shows it."""

    async def work(client: Client) -> Status:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        await run.join()
        if epoch is not None:
            txn = raise_epoch(run.keys, 0, epoch)
            await client.txn(txn.compares, txn.then)
        return await status(client, run.keys)

    now = with_client(etcd, work)
    json.dumps(now.to_json())
    return now, " ".join(plain(facts_console(), status_page(now).whole()).split())


def _epoch(now: Status) -> EpochFacts:
    assert now.epoch is not None
    return now.epoch


def test_a_run_whose_etcd_never_went_back_tells_of_no_epoch(etcd: EtcdServer, namespace: str) -> None:
    now, page = _status(etcd, namespace, None)
    assert now.epoch is None
    assert "epoch" not in page


def test_a_status_says_that_changes_wait_while_the_ranks_report_what_they_hold(
    etcd: EtcdServer, namespace: str
) -> None:
    now, page = _status(etcd, namespace, WENT_BACK)
    epoch = _epoch(now)
    assert (epoch.settled, epoch.problem, epoch.before, epoch.after) == (False, None, 812, 640)
    assert "its cluster id is b, and was a (epoch 1, revision 812 → 640): training continues" in page
    assert "changes wait until all ranks have reported what they hold" in page


def test_a_status_names_ranks_that_cannot_be_joined_and_the_cure(etcd: EtcdServer, namespace: str) -> None:
    now, page = _status(etcd, namespace, WENT_BACK.model_copy(update={"problem": CONFLICT}))
    assert _epoch(now).problem == CONFLICT
    assert CONFLICT in page
    assert (
        "Training continues, but no change is made: restart all ranks, they resume from the newest checkpoint" in page
    )


def test_a_history_tells_each_epoch_and_marks_what_was_written_back(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> tuple[Status, History]:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        for number in (1, 2):
            await client.put(keys.config_of("lr"), str(number / 10))
            await run.apply("lr", number / 10)
        found = await client.get(keys.plan(2))
        assert found is not None
        plan = {**json.loads(found.value), "restored": 1}
        settled = WENT_BACK.model_copy(update={"settled": True, "plan": 2})
        adopted = Epoch(number=2, why="checkpoints were adopted of which etcd knew nothing", author="ann", settled=True)
        puts = [(keys.plan(2), json.dumps(plan)), (keys.epoch_of(1), settled.encode()), (keys.epoch, adopted.encode())]
        await client.txn([], [Op.put(key, text) for key, text in [*puts, (keys.epoch_of(2), adopted.encode())]])
        return await status(client, keys), await history(client, keys)

    now, found = with_client(etcd, work)
    assert [(epoch.number, epoch.author, epoch.written_back) for epoch in found.epochs] == [
        (2, "ann", ()),
        (1, None, (2,)),
    ]
    assert [(entry.plan, entry.restored) for entry in found.entries] == [(2, 1), (1, None)]
    assert "changes are made as usual; written back: plan 2" in found.epochs[1].sentence
    assert _epoch(now).number == 2
    json.dumps(found.to_json())
