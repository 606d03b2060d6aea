"""What status and history tell of an etcd whose history went back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from run_in_etcd import RunInEtcd, with_client

from instep.cli._output import facts_console, plain
from instep.cli._page import status_page
from instep.control import (
    ChangeReceipt,
    CommandReceipt,
    EpochReport,
    HistoryReport,
    Keys,
    Progress,
    RunStatus,
    Written,
    follow,
    history,
    send,
    set_values,
    status,
    watch_status,
)
from instep.etcd import Client, Op
from instep.protocol.records import Decision, Epoch, Plan
from instep.protocol.transactions import raise_epoch
from instep.testing import EtcdServer

TIMEOUT_S = 30.0
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


def _status(etcd: EtcdServer, namespace: str, epoch: Epoch | None) -> tuple[RunStatus, str]:
    """What is told while `epoch` stands, and the page that shows it."""

    async def work(client: Client) -> RunStatus:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        await run.join()
        if epoch is not None:
            txn = raise_epoch(run.keys, 0, epoch)
            await client.txn(txn.compares, txn.then)
        return await status(client, run.keys)

    now = with_client(etcd, work)
    json.dumps(now.to_json())
    return now, " ".join(plain(facts_console(), status_page(now).whole()).split())


def _epoch(now: RunStatus) -> EpochReport:
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
        "Training continues, but no change is applied: restart all ranks, they resume from the newest checkpoint"
        in page
    )


def test_a_history_tells_each_epoch_and_marks_what_was_written_back(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> tuple[RunStatus, HistoryReport]:
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
        adopted = Epoch(number=2, why="checkpoints that etcd had no record of were adopted", author="ann", settled=True)
        puts = [(keys.plan(2), json.dumps(plan)), (keys.epoch_of(1), settled.encode()), (keys.epoch, adopted.encode())]
        await client.txn([], [Op.put(key, text) for key, text in [*puts, (keys.epoch_of(2), adopted.encode())]])
        return await status(client, keys), await history(client, keys)

    now, found = with_client(etcd, work)
    assert [(epoch.number, epoch.author, epoch.written_back) for epoch in found.epochs] == [
        (2, "ann", ()),
        (1, None, (2,)),
    ]
    assert [(entry.plan, entry.restored) for entry in found.entries] == [(2, 1), (1, None)]
    assert "and changes are applied as usual; written back: plan 2" in found.epochs[1].sentence
    assert _epoch(now).number == 2
    json.dumps(found.to_json())


# -- following ---------------------------------------------------------------------------------------------------


def _follow_over_a_wipe(
    server: EtcdServer, namespace: str, story: Callable[[RunInEtcd, Written], Awaitable[None]]
) -> ChangeReceipt:
    """Writes lr=1e-4 and follows it; etcd is emptied while it waits for a plan, then the story happens."""

    async def work(client: Client) -> ChangeReceipt:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        async with aclosing(follow(client, keys, written, TIMEOUT_S)) as moves:
            waits = await anext(moves)
            assert isinstance(waits, Progress)
            assert waits.stage == "written"
            server.kill()
            server.wipe()
            telling = asyncio.ensure_future(story(run, written))
            async for move in moves:
                if isinstance(move, ChangeReceipt):
                    await telling
                    return move
        raise AssertionError("no receipt")

    return with_client(server, work)


async def _write_back(run: RunInEtcd, **settled: object) -> None:
    """As the ranks do after etcd was emptied: an epoch, what they hold, and that it is settled."""
    txn = raise_epoch(run.keys, 0, WENT_BACK)
    await run.client.txn(txn.compares, txn.then)
    await run.join()
    await run.client.put(run.keys.epoch, WENT_BACK.model_copy(update={"settled": True, **settled}).encode())


def test_a_change_that_etcd_lost_before_it_was_planned_is_told_so(etcd_server: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await _write_back(run)

    receipt = _follow_over_a_wipe(etcd_server, namespace, story)
    assert (receipt.outcome, receipt.holds) == ("lost", False)
    assert receipt.sentence == (
        "lr 3e-4 → 1e-4: not applied, etcd's history went back and lost it before it was agreed on: set it again"
    )


def test_a_change_that_the_ranks_write_back_is_followed_to_its_receipt(etcd_server: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await _write_back(run, plan=1)
        number = await run.open(written.revision, {"lr": 1e-4})
        await run.commit({"lr": 1e-4}, written.revision)
        await run.receipt()
        assert number == 1

    receipt = _follow_over_a_wipe(etcd_server, namespace, story)
    assert (receipt.outcome, receipt.applied) == ("applied", 4)


def test_another_change_of_the_same_revision_is_not_taken_for_it(etcd_server: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await _write_back(run)
        plan = Plan(
            number=1, view=1, gate=9, values={"lr": 0.9}, previous={}, revision=written.revision, change_id="other"
        )
        await run.client.put(run.keys.plan(1), plan.encode())
        await run.client.put(run.keys.decision(1), Decision(commit=True, by="leader").encode())

    assert _follow_over_a_wipe(etcd_server, namespace, story).outcome == "lost"


def test_a_status_that_is_watched_starts_again_with_what_etcd_holds_then(
    etcd_server: EtcdServer, namespace: str
) -> None:
    """Emptied, it holds nothing of the run for a while: that does not end the watching."""

    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        async with aclosing(watch_status(client, keys, tick_s=0.1)) as statuses:
            assert (await anext(statuses)).epoch is None
            etcd_server.kill()
            etcd_server.wipe()
            lost = await _next(statuses, lambda now: now.trouble is not None)
            assert "it holds nothing of this run" in (lost.trouble or "")
            await _write_back(run)
            found = await _next(statuses, lambda now: now.epoch is not None and now.epoch.settled)
            assert (found.trouble, found.state) == (None, "training")

    with_client(etcd_server, work)


async def _next(statuses: AsyncIterator[RunStatus], condition: Callable[[RunStatus], bool]) -> RunStatus:
    async for now in statuses:
        if condition(now):
            return now
    raise AssertionError("the statuses ended")


def test_a_command_that_etcd_lost_before_it_was_planned_is_told_so(etcd_server: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> CommandReceipt:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        sent = await send(client, keys, "pause")
        async with aclosing(follow(client, keys, sent, TIMEOUT_S)) as moves:
            await anext(moves)
            etcd_server.kill()
            etcd_server.wipe()
            await _write_back(run)
            async for move in moves:
                if isinstance(move, CommandReceipt):
                    return move
        raise AssertionError("no receipt")

    receipt = with_client(etcd_server, work)
    assert (receipt.outcome, receipt.holds) == ("lost", False)
    assert receipt.sentence.endswith("history went back and lost it before it was agreed on: request it again")
