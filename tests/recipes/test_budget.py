"""The retry budget: a count that survives those who count, and is never overspent."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from recipe_support import at_once

from async_support import SLACK_S, run
from instep.coordination import Reset, RetryBudget, Spent
from instep.coordination.budget import HISTORY, MAX_CAUSES, MAX_LIMIT, MAX_WORD_BYTES, Account
from instep.errors import BudgetSpent, ConfigError, EtcdUnavailable, SettingsError
from instep.etcd import Client
from instep.testing import EtcdServer, Proxy


def test_each_cause_has_its_own_count_and_a_reset_gives_all_back(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with Client(etcd.endpoints) as client:
            budget = RetryBudget(client, namespace, {"oom": 2, "preempted": 1})
            assert await budget.spend("oom", "1") == 1
            assert await budget.spend("oom", "2") == 0
            with pytest.raises(BudgetSpent, match="All 2 attempts for 'oom'") as spent:
                await budget.spend("oom", "3")
            assert (spent.value.cause, spent.value.limit) == ("oom", 2)
            assert await budget.remaining("preempted") == 1
            await budget.reset("ops", "a new node")
            assert await budget.remaining("oom") == 2
            assert await budget.spend("oom", "1") == 1
            history = await budget.history()
            assert history[:2] == (Spent("oom", "1"), Spent("oom", "2"))
            assert isinstance(history[2], Reset)
            assert (history[2].who, history[2].why, history[2].spent) == ("ops", "a new node", {"oom": 2})
            with pytest.raises(SettingsError, match="none of the causes"):
                await budget.spend("other", "1")

    run(main())


def test_an_attempt_is_counted_once_however_often_it_is_given(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with Client(etcd.endpoints) as client:
            for _ in range(3):
                assert await RetryBudget(client, namespace, 1).spend("oom", "attempt-1") == 0
            with pytest.raises(BudgetSpent):
                await RetryBudget(client, namespace, 1).spend("oom", "attempt-2")
            assert await RetryBudget(client, namespace, 1).spend("oom", "attempt-1") == 0

    run(main())


def test_spenders_at_the_same_time_never_overspend(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async def spender(number: int) -> int:
            async with Client(etcd.endpoints) as client:
                budget, had = RetryBudget(client, namespace, 25, timeout_s=30), 0
                for attempt in range(10):
                    try:
                        await budget.spend("oom", f"{number}-{attempt}")
                        had += 1
                    except BudgetSpent:
                        break
                return had

        assert sum(await at_once(*(spender(number) for number in range(5)))) == 25
        async with Client(etcd.endpoints) as client:
            assert len(set(await RetryBudget(client, namespace, 25).history())) == 25

    run(main())


def test_a_lost_reply_counts_once(etcd: EtcdServer, namespace: str) -> None:
    async def main(proxy: Proxy) -> None:
        async with Client([proxy.endpoint]) as client:
            budget = RetryBudget(client, namespace, 5)
            proxy.lose_next_reply(b"attempt-1")
            assert await budget.spend("oom", "attempt-1") == 4
            proxy.lose_next_reply(b"ops")
            await budget.reset("ops", "why not")
            assert [type(item) for item in await budget.history()] == [Spent, Reset]
            assert proxy.statistics().replies_lost == 2
            assert budget.statistics().repeated == 1

    with Proxy("127.0.0.1", etcd.port) as proxy:
        run(main(proxy))


def test_a_frozen_server_ends_in_time_and_the_same_attempt_can_be_given_again(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client(etcd_server.endpoints, timeout_s=0.4) as client:
            budget = RetryBudget(client, "/frozen", 3, timeout_s=1)
            await budget.spend("oom", "1")
            etcd_server.pause()
            began = time.monotonic()
            with pytest.raises(EtcdUnavailable, match="call again with the same arguments"):
                await budget.spend("oom", "2")
            assert time.monotonic() - began < 1 + SLACK_S
            etcd_server.resume()
            patient = RetryBudget(client, "/frozen", 3)
            assert await patient.spend("oom", "2") == 1
            etcd_server.kill()
            await asyncio.to_thread(etcd_server.restart)
            assert await patient.remaining("oom") == 1

    run(main())


def test_the_history_is_bounded_and_the_count_is_not_cut_with_it(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with Client(etcd.endpoints) as client:
            budget = RetryBudget(client, namespace, 200)
            for number in range(198):
                await budget.spend("oom", str(number))
            for number in range(5):
                await budget.spend("preempted", str(number))
            assert len(await budget.history()) == 200
            assert await budget.remaining("oom") == 2
            assert await budget.spend("oom", "0") == 2

    run(main())


def test_what_is_no_budget_gives_nothing_away(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with Client(etcd.endpoints) as client:
            for value in ("", "[]", "{}", '{"spent": 1, "history": []}', '{"spent": [["a"]], "history": []}'):
                await client.put(f"{namespace}/budget", value)
                with pytest.raises(ConfigError, match="holds no budget"):
                    await RetryBudget(client, namespace, 3).spend("oom", "1")

    run(main())


def test_a_repeated_attempt_under_a_lowered_limit_leaves_none_and_never_less(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with Client(etcd.endpoints) as client:
            budget = RetryBudget(client, namespace, 3)
            for attempt in ("1", "2", "3"):
                await budget.spend("oom", attempt)
            assert await RetryBudget(client, namespace, 1).spend("oom", "1") == 0

    run(main())


def test_an_account_at_its_limits_is_one_value_that_etcd_takes(etcd: EtcdServer, namespace: str) -> None:
    """Words of quotes, which JSON doubles: no longer ones are allowed."""

    async def main() -> None:
        async with Client(etcd.endpoints) as client:
            causes = [f"{number:02}".ljust(MAX_WORD_BYTES, '"') for number in range(MAX_CAUSES)]
            spent = [
                Spent(cause, f"{number:03}".ljust(MAX_WORD_BYTES, '"'))
                for cause in causes
                for number in range(MAX_LIMIT)
            ]
            resets = [Reset("\x01" * 500, "\x01" * 500, {}, str(number)) for number in range(HISTORY)]
            for account in (Account(tuple(spent[:-1]), tuple(spent[-HISTORY:])), Account((), tuple(resets))):
                await client.put(f"{namespace}/budget", account.encode())
                budget = RetryBudget(client, namespace, dict.fromkeys(causes, MAX_LIMIT))
                await budget.spend(spent[-1].cause, spent[-1].attempt)
                await budget.reset("\x01" * 500, "\x01" * 500)

    run(main())


LIMITS_THAT_ARE_NONE: list[Any] = [
    *(-1, 201, 2.5, True, "3", {}, {"a/b": 1}, {"": 1}, {"a": 2.5}, {"a": 201}, {7: 1}),
    {str(number): 1 for number in range(17)},
]


def test_what_cannot_be_spent_or_reset_is_refused_before_etcd_is_asked() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"]) as client:
            for limit in LIMITS_THAT_ARE_NONE:
                with pytest.raises(SettingsError, match="cause"):
                    RetryBudget(client, "/b", limit)
            budget = RetryBudget(client, "/b", 3)
            for cause, attempt in (
                ("", "1"),
                ("a/b", "1"),
                ("é" * 33, "1"),
                ("a", ""),
                ("a", "x" * 65),
                ("a", "é" * 33),
                ("a", "\n"),
            ):
                with pytest.raises(SettingsError):
                    await budget.spend(cause, attempt)
            for who, why in (("", "why"), ("who", " ")):
                with pytest.raises(SettingsError, match="who and why"):
                    await budget.reset(who, why)

    run(main())
