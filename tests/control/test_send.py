"""Commands are checked before they are written, and followed to what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from run_in_etcd import RunInEtcd, run_async, with_client

from instep.control import (
    ActionsReport,
    CheckpointsReport,
    CommandReceipt,
    HistoryReport,
    Keys,
    RunStatus,
    Sent,
    actions,
    checkpoints,
    connect,
    follow,
    history,
    send,
    status,
    wait,
)
from instep.errors import CommandRefused, NotRunning, ReceiptTimeout, RunNotFound, SettingsError
from instep.etcd import Client
from instep.protocol.records import Command, FailedSave, FailedSaves, Saving
from instep.settings import Settings
from instep.testing import EtcdServer, Proxy

TIMEOUT_S = 30.0


def _told(
    server: EtcdServer,
    namespace: str,
    kind: Any,
    story: Callable[[RunInEtcd, Sent], Awaitable[None]],
    *,
    before: Callable[[RunInEtcd], Awaitable[None]] | None = None,
    timeout_s: float = TIMEOUT_S,
    **fields: Any,
) -> CommandReceipt:
    """Sends a command and follows it while the story happens."""

    async def work(client: Client) -> CommandReceipt:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys, nodes=4)
        await run.join()
        if before is not None:
            await before(run)
        sent = await send(client, keys, kind, author="ann", **fields)
        happening = asyncio.ensure_future(story(run, sent))
        try:
            receipt = await wait(client, keys, sent, timeout_s)
            await happening
        finally:
            happening.cancel()
        return receipt

    return with_client(server, work)


def _refused(
    server: EtcdServer, namespace: str, story: Callable[[RunInEtcd], Awaitable[None]], kind: Any, **fields: Any
) -> str:
    """Why it is refused; nothing must have been written."""

    async def work(client: Client) -> str:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        await story(run)
        there = await client.range(keys.commands)
        with pytest.raises((CommandRefused, NotRunning, SettingsError)) as refused:
            await send(client, keys, kind, **fields)
        assert (await client.range(keys.commands)).kvs == there.kvs
        return str(refused.value)

    return with_client(server, work)


async def _nothing(run: RunInEtcd) -> None:
    pass


async def _paused(run: RunInEtcd) -> None:
    await send(run.client, run.keys, "pause", author="ann", reason="look")
    await run.carry_out(gate=812)


async def _stopping(run: RunInEtcd) -> None:
    await send(run.client, run.keys, "stop")
    await run.carry_out(gate=900)


async def _pause_waits(run: RunInEtcd) -> None:
    await send(run.client, run.keys, "pause", author="ann")


async def _declared(run: RunInEtcd) -> None:
    for rank in range(4):
        await run.report(rank, 5, ("evaluate", "sample") if rank != 2 else ("evaluate",))


async def _saved(run: RunInEtcd) -> None:
    for step in range(100, 800, 100):
        await run.save(step)


@pytest.mark.parametrize(
    ("story", "kind", "fields", "said"),
    [
        (
            _paused,
            "pause",
            {},
            "already paused, before step 812 (paused by ann: look); 'instep resume gpt-a'",
        ),
        (_paused, "checkpoint", {}, "resume it first, or stop it with a save"),
        (_nothing, "resume", {}, "the run is not paused; 'instep status gpt-a' shows its state"),
        (_stopping, "stop", {}, "the run already stops before step 901; 'instep status gpt-a' shows its progress"),
        (_stopping, "pause", {}, "the run already stops before step 901"),
        (_pause_waits, "pause", {}, "a pause by ann is already in progress: 'instep status gpt-a' shows its progress"),
        (_declared, "action", {"name": "evalute"}, "declares no action 'evalute'; did you mean evaluate?"),
        (_declared, "action", {"name": "zzz"}, "declares no action 'zzz'; it declares evaluate, sample (run.action)"),
        (_declared, "action", {"name": "sample"}, "1 rank did not declare action 'sample' (2): all ranks must"),
        (_nothing, "action", {"name": "two words"}, "the action name 'two words' is not usable"),
        (_nothing, "action", {}, "must be text such as 'evaluate'"),
        (_nothing, "restore", {"name": "7-7"}, "no checkpoint '7-7'; there are none (instep checkpoints)"),
        (_nothing, "restore", {"name": "latest"}, "no checkpoint 'latest'; there are none"),
        (_saved, "restore", {"name": "7-7"}, "there are 300-7, 400-7, 500-7, 600-7, 700-7 (instep checkpoints)"),
        (_nothing, "stop", {"node": "node-7"}, "name or host 'node-7'; there are node-0 (host-0), node-1 (host-1)"),
        (_nothing, "pause", {"reason": "x" * 2000}, "the reason has 2000 characters"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_written(
    etcd: EtcdServer,
    namespace: str,
    story: Callable[[RunInEtcd], Awaitable[None]],
    kind: Any,
    fields: dict[str, Any],
    said: str,
) -> None:
    assert said in _refused(etcd, namespace, story, kind, **fields)


def test_a_pause_that_waits_can_be_taken_back(etcd: EtcdServer, namespace: str) -> None:
    """A resume is checked against what the commands before it will have done, not against how the run is now."""

    async def work(client: Client) -> Sent:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        await send(client, keys, "pause")
        return await send(client, keys, "resume")

    assert with_client(etcd, work).kind == "resume"


def test_a_run_that_does_not_train_is_not_commanded(etcd: EtcdServer, namespace: str) -> None:
    async def ended(run: RunInEtcd) -> None:
        await run.leave()

    async def died(run: RunInEtcd) -> None:
        await run.die()

    async def starting(run: RunInEtcd) -> None:
        await run.die()
        await run.register(0, "99999", "node-0")

    for story, said in (
        (died, "is not running: no worker of it is alive; start it first"),
        (starting, "gpt-a is starting, its ranks do not train yet"),
        (ended, "is not running: all its ranks have ended cleanly; start it first"),
    ):
        assert said in _refused(etcd, namespace, story, "pause")


def test_a_run_that_is_not_there_is_named_with_what_may_have_been_meant(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        await RunInEtcd(client, Keys(namespace, "gpt-a")).join()
        for look in (lambda keys: send(client, keys, "pause"), lambda keys: checkpoints(client, keys)):
            with pytest.raises(RunNotFound, match=r"did you mean 'gpt-a'\?"):
                await look(Keys(namespace, "gpt-b"))

    with_client(etcd, work)


def test_a_command_is_written_with_who_and_why(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        sent = await send(client, keys, "stop", save=False, node="host-1", author="ann", reason="spot\nnotice")
        assert (sent.node, sent.what) == ("node-1", "stop for node node-1 without a save")
        found = await client.get(keys.command(sent.command_id))
        assert found is not None
        assert found.mod_revision == sent.revision
        expected = Command(kind="stop", save=False, node="node-1", author="ann", reason="spot notice")
        assert Command.decode(found.value) == expected
        assert "asked_at_s" not in sent.to_json()

    with_client(etcd, work)


@pytest.mark.parametrize(
    ("kind", "fields", "before", "said"),
    [
        ("pause", {}, None, "pause: requested, armed on 8/8 ranks, paused before step 812 on 8/8"),
        ("resume", {}, _paused, "resume: requested, armed on 8/8 ranks, resumed at step 812 on 8/8"),
        (
            "stop",
            {"save": False},
            None,
            "stop without a save: requested, armed on 8/8 ranks, all ranks stop before step 812",
        ),
        (
            "action",
            {"name": "evaluate"},
            None,
            "act evaluate: requested, armed on 8/8 ranks, evaluate ran before step 812 on 8/8",
        ),
    ],
)
def test_the_receipt_tells_step_ranks_and_time(
    etcd: EtcdServer,
    namespace: str,
    kind: str,
    fields: dict[str, Any],
    before: Callable[[RunInEtcd], Awaitable[None]] | None,
    said: str,
) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        await run.carry_out(gate=812)

    receipt = _told(etcd, namespace, kind, story, before=before, **fields)
    assert receipt.sentence == f"{said}, {receipt.took_s:.2f} s"
    assert receipt.holds
    assert (receipt.step, receipt.armed, receipt.applied, receipt.ranks) == (812, 8, 8, 8)


def test_a_stop_with_a_save_ends_with_the_checkpoint(etcd: EtcdServer, namespace: str) -> None:
    """Also when the ranks are gone before it is committed; an older one of the same step does not count."""

    async def saved_before(run: RunInEtcd) -> None:
        await run.save(1200, token=6)

    async def story(run: RunInEtcd, sent: Sent) -> None:
        await run.carry_out(gate=1200)
        saving = Saving(id="1200-7", step=1200, token=7, rank=3)
        await run.client.put(run.keys.saving, saving.encode())
        await run.leave()
        await run.save(1200)

    receipt = _told(etcd, namespace, "stop", story, before=saved_before)
    assert receipt.sentence == (
        "stop: requested, armed on 8/8 ranks, all ranks stop before step 1201, "
        f"checkpoint 1200-7 saved by rank 3 (1.2 GB, 0.8 s), {receipt.took_s:.2f} s"
    )
    assert receipt.checkpoint is not None
    assert (receipt.checkpoint.id, receipt.checkpoint.latest) == ("1200-7", True)


def test_a_checkpoint_that_is_being_written_is_told_of(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> list[str]:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        sent = await send(client, keys, "checkpoint")
        told: list[str] = []
        async with aclosing(follow(client, keys, sent, TIMEOUT_S)) as moves:
            async for move in moves:
                told.append(move.sentence)
                if isinstance(move, CommandReceipt):
                    break
                if move.stage == "written":
                    await run.carry_out(gate=1200)
                elif "no checkpoint of step 1200 is committed yet" in move.sentence:
                    await client.put(keys.saving, Saving(id="1200-7", step=1200, token=7, rank=3).encode())
                elif "rank 3 writes" in move.sentence:
                    await run.save(1200)
        return told

    *_, asked, writes, end = with_client(etcd, work)
    assert asked == "plan 1, step 1200: applied on 4/4 ranks; no checkpoint of step 1200 is committed yet"
    assert writes == "plan 1, step 1200: applied on 4/4 ranks; rank 3 writes the checkpoint of step 1200"
    assert "asked for in step 1200 on 4/4, checkpoint 1200-7 saved by rank 3 (1.2 GB, 0.8 s), " in end


def test_who_waits_for_a_checkpoint_is_told_why_it_could_not_be_saved(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        failed = FailedSave(step=1200, rank=3, host="h", text="the disk is full; make room there")
        await run.carry_out(gate=1200)
        await run.client.put(run.keys.failed_saves, FailedSaves(saves=(failed,)).encode())

    receipt = _told(etcd, namespace, "checkpoint", story)
    assert (receipt.outcome, receipt.checkpoint) == ("unsaved", None)
    assert "but the ranks passed step 1200 and could not save it: the disk is full; make room there" in receipt.sentence


def test_a_run_that_leaves_without_saving_is_told_of(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        await run.carry_out(gate=1200)
        await run.leave()
        await run.die()

    receipt = _told(etcd, namespace, "stop", story)
    assert (receipt.outcome, receipt.holds, receipt.checkpoint) == ("unsaved", False, None)
    assert "but the ranks passed step 1200 and saved nothing: does the loop call ckpt.save(step) when " in (
        receipt.sentence
    )


def test_a_save_under_way_is_waited_for_until_the_time_is_up(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        saving = Saving(id="100-7", step=100, token=7, rank=3)
        await run.client.put(run.keys.saving, saving.encode())
        await run.carry_out()
        for rank in range(8):
            await run.report(rank, 400)

    with pytest.raises(
        ReceiptTimeout,
        match=r"done, but not saved within 6 s: applied at step 100 on 8/8 ranks, rank 3 writes the checkpoint of step "
        r"100\. The checkpoint may still be committed\.",
    ):
        _told(etcd, namespace, "checkpoint", story, timeout_s=6)


def test_a_declined_command_is_raised_with_its_reason(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        await run.decline("the run is already paused")

    with pytest.raises(CommandRefused, match="pause: declined by the run: the run is already paused"):
        _told(etcd, namespace, "pause", story)


def test_a_command_that_a_rank_refuses_is_declined(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        await run.open_order(Command(kind="action", name="evaluate"), sent.command_id, sent.revision)
        await run.abort("rank 1 could not accept it", refused={"evaluate": "the script declares no such action"})

    with pytest.raises(CommandRefused, match="act evaluate: declined by the run: evaluate: the script declares no"):
        _told(etcd, namespace, "action", story, name="evaluate")


def test_an_aborted_attempt_is_told_and_the_next_one_counts(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        await run.open_order(Command(kind="pause"), sent.command_id, sent.revision, gate=10)
        await run.abort("rank 3 was already at step 11")
        await run.carry_out(gate=20)

    receipt = _told(etcd, namespace, "pause", story)
    assert (receipt.attempts, receipt.plan, receipt.step) == (2, 2, 20)
    assert receipt.sentence.endswith("s (attempt 2)")


def test_a_new_start_overtakes_a_command(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        await run.join()
        await run.client.delete(run.keys.commands, prefix=True)

    receipt = _told(etcd, namespace, "checkpoint", story)
    assert (receipt.outcome, receipt.holds) == ("superseded", False)
    assert receipt.sentence == "checkpoint: not done, the run was restarted first"


def test_a_run_that_ends_first_ends_the_wait(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd, sent: Sent) -> None:
        await run.leave()

    receipt = _told(etcd, namespace, "pause", story)
    assert (receipt.outcome, receipt.sentence) == ("ended", "pause: not done, the run ended first")


def test_a_time_out_says_how_far_it_got(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        sent = await send(client, keys, "pause")
        await client.delete(f"{keys.members}3/", prefix=True)
        await wait(client, keys, sent, 0.5)

    with pytest.raises(
        ReceiptTimeout,
        match=r"pause: written, but not applied everywhere within 0\.5 s: not planned by the run's leader; 1 rank "
        r"missing: 3\. It stays requested\.",
    ):
        with_client(etcd, work)


def test_a_status_tells_what_is_under_way(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> tuple[RunStatus, RunStatus]:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        await run.save(700)
        await _paused(run)
        saving = Saving(id="811-7", step=811, token=7, rank=1)
        await client.put(keys.saving, saving.encode())
        waiting = await send(client, keys, "action", name="evaluate", author="bob", reason="curious")
        first = await status(client, keys)
        await run.open_order(Command(kind="action", name="evaluate"), waiting.command_id, waiting.revision)
        # What a leader that has been replaced was saving counts no more.
        await client.put(keys.saving, Saving(id="811-6", step=811, token=6, rank=1).encode())
        return first, await status(client, keys)

    now, then = with_client(etcd, work)
    assert now.state == "paused"
    assert now.paused is not None
    assert (now.paused.step, now.paused.why) == (812, "paused by ann: look")
    assert now.checkpoint is not None
    assert (now.checkpoint.id, now.checkpoint.saved_by) == ("700-7", 3)
    assert now.saving is not None
    assert (now.saving.step, now.saving.rank) == (811, 1)
    assert [(item.what, item.author, item.reason) for item in now.commands] == [("act evaluate", "bob", "curious")]
    assert then.plan is not None
    assert (then.plan.what, then.commands, then.saving) == ("act evaluate", (), None)


def test_history_shows_commands_beside_changes(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> HistoryReport:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        await run.open(await client.put(keys.config_of("lr"), "0.5"), {"lr": 0.5})
        await run.commit({"lr": 0.5}, 1)
        await run.receipt()
        await _paused(run)
        await send(client, keys, "action", name="evaluate", author="bob")
        await run.decline("no such\naction")
        await send(client, keys, "stop", save=False)
        await run.carry_out(gate=900)
        return await history(client, keys)

    found = with_client(etcd, work).entries
    assert [(entry.kind, entry.what, entry.outcome, entry.step) for entry in found] == [
        ("stop", "stop without a save", "applied", 900),
        ("action", "act evaluate", "declined", None),
        ("pause", "pause", "applied", 812),
        ("config", "lr 3e-4 → 0.5", "applied", 100),
    ]
    assert (found[1].author, found[1].name, found[1].refusal) == ("bob", "evaluate", "no such action")
    assert (found[2].author, found[2].reason) == ("ann", "look")


def test_checkpoints_are_listed_the_newest_commit_first(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> CheckpointsReport:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        await run.save(900, token=5)
        await run.save(300)
        await client.put(keys.checkpoint("1-1"), "not JSON")
        return await checkpoints(client, keys)

    found = with_client(etcd, work).to_json()["checkpoints"]
    assert [(item["id"], item["latest"]) for item in found] == [("300-7", True), ("900-5", False)]
    assert found[0] | {"step": 300, "path": "/saved/step-300-7", "saved_by": 3, "token": 7} == found[0]
    assert found[0] | {"bytes": 1_200_000_000, "files": 2, "world_size": 4, "host": "host-1"} == found[0]
    assert found[0]["committed_at"] == "2026-11-23T05:30:27+00:00"


def test_declared_actions_are_listed_with_their_ranks(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> ActionsReport:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        await _declared(run)
        return await actions(client, keys)

    assert [(item.name, item.ranks, item.everywhere) for item in with_client(etcd, work).actions] == [
        ("evaluate", "0-3", True),
        ("sample", "0-1,3", False),
    ]


def test_a_lost_reply_to_a_command_is_settled_by_a_look(etcd_server: EtcdServer, namespace: str) -> None:
    async def work(proxy: Proxy) -> Sent:
        keys = Keys(namespace, "gpt-a")
        async with connect(Settings(endpoints=(f"http://{proxy.endpoint}",)), timeout_s=2) as client:
            await RunInEtcd(client, keys).join()
            proxy.lose_next_reply(b"ann-of-the-proxy")
            sent = await send(client, keys, "pause", author="ann-of-the-proxy")
            (found,) = (await client.range(keys.commands)).kvs
            assert (found.key, found.mod_revision) == (keys.command(sent.command_id), sent.revision)
            assert proxy.statistics().replies_lost == 1
            return sent

    with Proxy("127.0.0.1", etcd_server.port) as proxy:
        assert run_async(work(proxy)).author == "ann-of-the-proxy"
