"""A change is followed to its receipt, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest
from run_in_etcd import RunInEtcd, with_client

from instep.control import ChangeReceipt, Keys, Written, follow, set_values, wait
from instep.control._progress import is_doubtful, progress_of
from instep.control._read import load
from instep.control._requests import ChangeRequest
from instep.errors import ChangeRejected, ReceiptTimeout
from instep.etcd import Client
from instep.testing import EtcdServer

TIMEOUT_S = 30.0


@asynccontextmanager
async def _alongside(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
        await task
    finally:
        task.cancel()


def _outcome(
    server: EtcdServer,
    namespace: str,
    story: Callable[[RunInEtcd, Written], Awaitable[None]],
    *,
    nodes: int = 4,
    timeout_s: float = TIMEOUT_S,
    joined: bool = True,
) -> tuple[ChangeReceipt, list[str]]:
    """Writes lr=1e-4 and follows it while the story happens."""

    async def work(client: Client) -> tuple[ChangeReceipt, list[str]]:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys, nodes=nodes)
        if joined:
            await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"}, create=True)
        stages = []
        async with _alongside(story(run, written)), aclosing(follow(client, keys, written, timeout_s)) as moves:
            async for move in moves:
                if isinstance(move, ChangeReceipt):
                    return move, stages
                stages.append(move.stage)
        raise AssertionError("no receipt")

    return with_client(server, work)


def test_the_receipt_tells_step_ranks_and_time(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.apply("lr", 1e-4, gate=12341)

    receipt, _ = _outcome(etcd, namespace, story)
    expected = "lr 3e-4 → 1e-4: requested, armed on 8/8 ranks, applied at step 12341 on 8/8, "
    assert receipt.sentence == f"{expected}{receipt.took_s:.2f} s"
    assert receipt.holds
    assert (receipt.plan, receipt.step, receipt.armed, receipt.applied, receipt.ranks) == (1, 12341, 8, 8, 8)


def test_several_changes_share_one_receipt(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> ChangeReceipt:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4", "clip": "0.5", "note": "x"})
        await run.open(written.revision, {"lr": 1e-4, "clip": 0.5})
        await run.ack()
        await run.commit({"lr": 1e-4, "clip": 0.5}, written.revision)
        await run.receipt()
        return await wait(client, keys, written, TIMEOUT_S)

    receipt = with_client(etcd, work)
    assert receipt.sentence.startswith("lr 3e-4 → 1e-4, clip 1.0 → 0.5, note x: requested, armed on 4/4 ranks")


def test_progress_tells_each_stage(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> list[tuple[str, int, int]]:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        seen = []
        async with aclosing(follow(client, keys, written, TIMEOUT_S)) as moves:
            async for move in moves:
                if isinstance(move, ChangeReceipt):
                    break
                seen.append((move.stage, move.armed, move.applied))
                match seen[-1]:
                    case ("written", _, _):
                        await run.open(written.revision, {"lr": 1e-4})
                    case ("planned", 0, _):
                        await run.ack("node-0")
                    case ("planned", 2, _):
                        await run.ack("node-1")
                    case ("planned", 4, _):
                        await run.commit({"lr": 1e-4}, written.revision)
                    case ("committed", _, 0):
                        await run.receipt("node-0")
                    case ("committed", _, 2):
                        await run.receipt("node-1")
        return seen

    assert with_client(etcd, work) == [
        ("written", 0, 0),
        ("planned", 0, 0),
        ("planned", 2, 0),
        ("planned", 4, 0),
        ("committed", 4, 0),
        ("committed", 4, 2),
    ]


def test_an_aborted_attempt_is_told_and_the_next_one_counts(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.open(written.revision, {"lr": 1e-4}, gate=10)
        await run.abort("rank 3 was already at step 11")
        await run.apply("lr", 1e-4, gate=20)

    receipt, _ = _outcome(etcd, namespace, story)
    assert (receipt.attempts, receipt.plan, receipt.step) == (2, 2, 20)
    assert receipt.sentence.endswith("s (attempt 2)")


def test_ranks_that_left_cleanly_do_not_count(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.leave("node-3")
        await run.open(written.revision, {"lr": 1e-4})
        await run.ack("node-0", "node-1", "node-2")
        await run.commit({"lr": 1e-4}, written.revision)
        await run.receipt("node-0", "node-1")
        await run.leave("node-2")

    receipt, _ = _outcome(etcd, namespace, story)
    assert (receipt.outcome, receipt.applied, receipt.ranks) == ("applied", 4, 4)


def test_a_rank_that_has_left_is_counted_though_the_watch_of_its_receipt_lags(etcd: EtcdServer, namespace: str) -> None:
    """Left and receipts are watched apart from each other: only a reading at one revision tells."""

    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys, nodes=2)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        await run.apply("lr", 1e-4)
        await run.leave("node-1")
        whole = await load(client, keys)
        lagging = await load(client, keys, receipts=0)
        lagging.receipts = {1: {"node-0": whole.receipts[1]["node-0"]}}
        request = ChangeRequest(written)
        assert (progress_of(lagging, request).ranks, progress_of(whole, request).ranks) == (2, 4)
        assert is_doubtful(lagging, progress_of(lagging, request))
        assert not is_doubtful(whole, progress_of(whole, request))

    with_client(etcd, work)


def test_a_change_that_many_others_followed_has_its_receipt_although_all_ranks_have_left(
    etcd: EtcdServer, namespace: str
) -> None:
    """The receipts read are those of its own plan, however many newer plans there are."""

    async def story(run: RunInEtcd) -> None:
        await run.apply("lr", 1e-4)
        for clip in (2.0, 3.0, 4.0, 5.0, 6.0):
            revision = await run.client.put(run.keys.config_of("clip"), str(clip))
            await run.open(revision, {"clip": clip})
            await run.commit({"clip": clip}, revision)
        await run.leave()

    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys, nodes=2)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        await story(run)
        receipt = await wait(client, keys, written, TIMEOUT_S)
        assert (receipt.outcome, receipt.ranks) == ("applied", 4)

    with_client(etcd, work)


def test_a_rejection_by_the_run_is_raised_with_its_reason(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.reject("lr", "1e-4", written.revision, "too small for this model")

    with pytest.raises(ChangeRejected, match="too small for this model"):
        _outcome(etcd, namespace, story)


def test_a_worker_that_refuses_a_plan_rejects_the_change(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.open(written.revision, {"lr": 1e-4})
        await run.abort("rank 1 could not accept it", refused={"lr": "must be a power of two"})

    with pytest.raises(ChangeRejected, match="power of two"):
        _outcome(etcd, namespace, story)


def test_an_old_rejection_of_the_same_name_is_not_ours(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.reject("lr", "7", written.revision - 1, "an older value")
        await run.apply("lr", 1e-4)

    assert _outcome(etcd, namespace, story)[0].outcome == "applied"


def test_a_later_write_of_the_same_name_supersedes_the_change(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.client.put(run.keys.config_of("lr"), "0.5")

    receipt, _ = _outcome(etcd, namespace, story)
    assert receipt.outcome == "superseded"
    assert not receipt.holds


def test_a_value_that_others_write_in_another_way_is_not_superseded(etcd: EtcdServer, namespace: str) -> None:
    """As with etcdctl: the text in etcd is not the one that Instep would have written."""

    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        put = replace(written, revision=await client.put(keys.config_of("lr"), "1e-4"), change_id="")
        assert progress_of(await load(client, keys), ChangeRequest(put)).stage == "written"

    with_client(etcd, work)


def test_a_change_that_is_planned_when_it_is_written_over_is_still_applied(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.open(written.revision, {"lr": 1e-4})
        await run.client.put(run.keys.config_of("lr"), "0.5")
        await run.ack()
        await run.commit({"lr": 1e-4}, written.revision)
        await run.receipt()

    assert _outcome(etcd, namespace, story)[0].outcome == "applied"


def test_a_run_that_ends_first_ends_the_wait(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.leave()

    receipt, _ = _outcome(etcd, namespace, story)
    assert receipt.outcome == "ended"
    assert not receipt.holds


def test_a_start_that_takes_the_values_is_a_receipt_too(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, written: Written) -> None:
        await run.join(revision=written.revision, values={"lr": 1e-4})

    receipt, _ = _outcome(etcd, namespace, story, joined=False)
    assert (receipt.outcome, receipt.view, receipt.ranks) == ("started", 1, 8)
    assert receipt.holds


def test_a_value_that_all_ranks_have_needs_no_plan(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> ChangeReceipt:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        return await wait(client, keys, await set_values(client, keys, {"lr": "0.0003"}), TIMEOUT_S)

    assert with_client(etcd, work).outcome == "already"


def test_a_time_out_says_how_far_it_got_and_who_is_missing(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys, nodes=4)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        await run.open(written.revision, {"lr": 1e-4})
        await run.ack("node-0", "node-2", "node-3")
        await client.delete(f"{keys.members}3/", prefix=True)
        await wait(client, keys, written, 0.5)

    with pytest.raises(ReceiptTimeout, match=r"armed on 6/8 ranks, not on 2-3; 1 rank missing: 3\. It stays desired"):
        with_client(etcd, work)


def test_a_watch_that_falls_behind_a_compaction_goes_on(etcd_server: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> ChangeReceipt:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        async with aclosing(follow(client, keys, written, TIMEOUT_S)) as moves:
            assert (await anext(moves)).sentence.startswith("requested")
            # Between the reading and the watches: they would begin at a revision that is gone.
            await run.apply("lr", 1e-4)
            revision = await client.put(f"{namespace}/x", "")
            await asyncio.to_thread(etcd_server.etcdctl, "compact", str(revision))
            async for move in moves:
                if isinstance(move, ChangeReceipt):
                    return move
        raise AssertionError("no receipt")

    assert with_client(etcd_server, work).outcome == "applied"


def test_a_restart_of_etcd_is_ridden_out(etcd_server: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> ChangeReceipt:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        async with aclosing(follow(client, keys, written, TIMEOUT_S)) as moves:
            await anext(moves)
            following = asyncio.ensure_future(anext(moves))
            etcd_server.kill()
            await asyncio.to_thread(etcd_server.restart)
            await run.open(written.revision, {"lr": 1e-4})
            assert (await following).plan == 1
            await run.ack()
            await run.commit({"lr": 1e-4}, written.revision)
            await run.receipt()
            async for move in moves:
                if isinstance(move, ChangeReceipt):
                    return move
        raise AssertionError("no receipt")

    assert with_client(etcd_server, work).outcome == "applied"
