"""Who waits for a receipt: a person at the terminal, and nobody where no worker is alive."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Awaitable, Callable

import pytest
from command import COMMAND, TIMEOUT_S, environment, instep
from run_in_etcd import RunInEtcd, with_client

from instep.control import ChangeReceipt, CommandReceipt, Keys, send, set_values, wait
from instep.control import follow as follow_changes
from instep.etcd import Client
from instep.testing import EtcdServer

Story = Callable[[RunInEtcd], Awaitable[None]]


@pytest.fixture
def env(etcd: EtcdServer, namespace: str) -> dict[str, str]:
    return environment(etcd.environment(), INSTEP_NAMESPACE=namespace, TERM="xterm")


def happens(etcd: EtcdServer, namespace: str, story: Story, *, join: bool = True) -> None:
    async def work(client: Client) -> None:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        run.view = 1
        if join:
            run.view = 0
            await run.join()
        await story(run)

    with_client(etcd, work)


async def _nothing(run: RunInEtcd) -> None:
    pass


class OnTerminal:
    """A command whose output is a terminal."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self._leader, follower = pty.openpty()
        self._process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=follower, stdout=follower, stderr=follower, env=env
        )
        os.close(follower)
        self._printed = b""

    def ended(self) -> tuple[int, str]:
        """Exit code, and all that was printed."""
        deadline = time.monotonic() + TIMEOUT_S
        try:
            while select.select([self._leader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._printed += os.read(self._leader, 65536)
        except OSError:
            pass  # the process has closed it
        try:
            return self._process.wait(TIMEOUT_S), self._printed.decode()
        finally:
            self._process.kill()
            os.close(self._leader)


def test_at_a_terminal_a_change_is_followed_to_its_receipt(
    etcd: EtcdServer, namespace: str, env: dict[str, str]
) -> None:
    happens(etcd, namespace, _nothing)
    command = OnTerminal("set", "gpt-a", "lr=1e-4", env=env)
    happens(etcd, namespace, lambda run: run.apply("lr", 1e-4, gate=12341), join=False)
    code, printed = command.ended()
    assert code == 0
    assert "applied at step 12341 on 4/4" in printed


def test_at_a_terminal_no_wait_returns_at_once(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    happens(etcd, namespace, _nothing)
    code, printed = OnTerminal("set", "gpt-a", "lr=1e-4", "--no-wait", env=env).ended()
    assert code == 0
    assert "requested at revision" in printed


def test_nobody_waits_for_a_run_without_workers(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    happens(etcd, namespace, lambda run: run.die())
    takes_it = "no worker of gpt-a is alive: the next start of the run uses it"
    code, printed = OnTerminal("set", "gpt-a", "lr=1e-4", env=env).ended()
    assert (code, takes_it in printed) == (0, True)
    asked = instep("set", "gpt-a", "lr=2e-4", "--wait", "--json", env=env)
    assert (asked.code, asked.json["outcome"]) == (11, "stopped")
    told = instep("set", "gpt-a", "lr=4e-4", "--wait", env=env)
    assert (told.code, takes_it in told.err) == (11, True)


def _hurried() -> float:
    """A clock that is fast, for what takes seconds to be sure of."""
    return 20 * time.monotonic()


async def _last(client: Client, keys: Keys, asked: object) -> ChangeReceipt | CommandReceipt:
    async for move in follow_changes(client, keys, asked, 2000, monotonic=_hurried):  # type: ignore[call-overload]
        last = move
    assert isinstance(last, ChangeReceipt | CommandReceipt)
    return last


def test_the_wait_ends_when_no_worker_is_alive_any_more(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        client, keys = run.client, run.keys
        written = await set_values(client, keys, {"lr": "1e-4"})
        await run.open(written.revision, {"lr": 1e-4})
        await run.die()
        receipt = await _last(client, keys, written)
        assert receipt.outcome == "stopped"
        assert receipt.sentence.endswith("not applied, no worker of the run is alive; its next start uses it")

    happens(etcd, namespace, story)


@pytest.mark.parametrize("agreed", [True, False])
def test_a_restore_ends_when_no_rank_is_alive_any_more(etcd: EtcdServer, namespace: str, *, agreed: bool) -> None:
    async def story(run: RunInEtcd) -> None:
        client, keys = run.client, run.keys
        await run.save(12)
        sent = await send(client, keys, "restore", name="latest")
        if agreed:
            command_id, revision, order = await run.ordered()
            await run.open_order(order, command_id, revision, gate=20)
            await run.ack()
            await run.commit_order(order, command_id, gate=20)
        await run.die()
        receipt = await _last(client, keys, sent)
        assert (receipt.outcome, receipt.holds) == ("stopped", False)
        assert receipt.sentence.endswith("no worker of the run is alive")
        assert ("agreed for step 20, but not done on all ranks" in receipt.sentence) is agreed

    happens(etcd, namespace, story)


def test_what_was_done_before_all_workers_ended_is_told_as_done(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        written = await set_values(run.client, run.keys, {"lr": "1e-4"})
        await run.apply("lr", 1e-4)
        await run.die()
        assert (await wait(run.client, run.keys, written, 60)).outcome == "applied"

    happens(etcd, namespace, story)
