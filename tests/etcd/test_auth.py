"""Users, passwords and tokens, including tokens that become invalid during use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_support import SLACK_S, run, until
from instep.errors import EtcdDenied, EtcdUnavailable, SettingsError
from instep.etcd import Client, Credentials, LeaseKeeper, Op
from instep.testing import EtcdServer, etcd_versions

ROOT = Credentials(user="root", password="secret")
VERSIONS = [binary.version for binary in etcd_versions()]


@pytest.fixture(params=VERSIONS)
def guarded(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    with EtcdServer(version=request.param, auth="root:secret") as running:
        yield running


@pytest.fixture(scope="module")
def calm() -> Iterator[EtcdServer]:
    """A server with authentication, for tests that do not break it, and a user who may use only some keys."""
    with EtcdServer(auth="root:secret") as running:
        running.etcdctl("user", "add", "small:small")
        running.etcdctl("role", "add", "small")
        running.etcdctl("role", "grant-permission", "small", "--prefix=true", "readwrite", "small/")
        running.etcdctl("user", "grant-role", "small", "small")
        yield running


def test_a_token_lost_in_a_restart_is_replaced_transparently(guarded: EtcdServer) -> None:
    async def main() -> None:
        async with (
            Client([guarded.endpoint], credentials=ROOT, timeout_s=10) as client,
            client.watch("auth/") as watch,
            LeaseKeeper(client, ttl_s=10) as keeper,
        ):
            await client.put("auth/a", "1")
            assert (await anext(watch)).events[0].kv.text == "1"
            waiting = asyncio.create_task(anext(watch))
            await asyncio.to_thread(guarded.restart)
            renewals = keeper.renewals

            async def written() -> bool:
                try:
                    return bool(await client.put("auth/a", "2"))
                except EtcdUnavailable:
                    return False

            await until(written)
            assert (await waiting).events[0].kv.text == "2"
            await until(lambda: keeper.renewals > renewals + 1)
            assert keeper.state == "connected"
            assert client.statistics().reauthentications >= 1
            assert (await client.txn([], [Op.put("auth/a", "3")])).succeeded

    run(main())


def test_a_watch_without_calls_recovers_after_its_token_is_lost(guarded: EtcdServer) -> None:
    async def main() -> None:
        async with (
            Client([guarded.endpoint], credentials=ROOT, timeout_s=10) as client,
            client.watch("alone/") as watch,
        ):
            waiting = asyncio.create_task(anext(watch))
            await asyncio.to_thread(guarded.restart)
            await asyncio.to_thread(guarded.etcdctl, "put", "alone/a", "1")
            async with asyncio.timeout(15):
                assert (await waiting).events[0].kv.text == "1"

    run(main())


def test_a_wrong_password_is_refused_in_one_sentence(calm: EtcdServer) -> None:
    async def main() -> None:
        wrong = Credentials(user="root", password="wrong")
        async with Client([calm.endpoint], credentials=wrong) as client:
            with pytest.raises(EtcdDenied, match="refused the password of user root: correct user and password"):
                await client.get("a")
            with pytest.raises(EtcdDenied, match="refused the password of user root"):
                await client.watch("a").__aenter__()
            with pytest.raises(EtcdDenied):
                await client.authenticate()
        assert "wrong" not in repr(wrong)

    run(main())


def test_a_client_without_a_user_gets_an_error_that_asks_for_one(calm: EtcdServer) -> None:
    async def main() -> None:
        async with Client([calm.endpoint]) as client:
            for call in (client.get("a"), client.put("a", "1"), client.watch("a").__aenter__()):
                with pytest.raises(EtcdDenied, match="give a user and a password"):
                    await call

    run(main())


def test_a_missing_permission_names_the_key_and_the_user(calm: EtcdServer) -> None:
    async def main() -> None:
        small = Credentials(user="small", password="small")
        async with Client([calm.endpoint], credentials=small) as client:
            assert await client.put("small/a", "1")
            async with client.watch("small/", start_revision=1) as watch:
                assert (await anext(watch)).events
            with pytest.raises(EtcdDenied, match=r"does not permit user small to write big/a: grant its role"):
                await client.put("big/a", "1")
            with pytest.raises(EtcdDenied, match="permit user small to write big/a"):
                await client.txn([], [Op.put("big/a", "1")])
            with pytest.raises(EtcdDenied, match=r"permit user small to (watch|read) big/"):
                await client.watch("big/").__aenter__()

    run(main())


def test_a_password_file_is_read_again_at_each_authentication(tmp_path: Path) -> None:
    async def main(server: EtcdServer) -> None:
        path = tmp_path / "password"
        path.write_text("secret\n")
        path.chmod(0o600)
        credentials = Credentials(user="root", password_file=str(path))
        async with Client([server.endpoint], credentials=credentials) as client:
            await client.put("file", "1")
            await client.authenticate()
            away = path.rename(tmp_path / "away")
            await client.authenticate()  # while the file is being replaced, its last contents count
            away.rename(path)
            await asyncio.to_thread(server.etcdctl, "user", "add", "other:pw")
            await asyncio.to_thread(server.etcdctl, "user", "grant-role", "other", "root")
            await client.authenticate()
            path.write_text("outdated")
            with pytest.raises(EtcdDenied):
                await client.authenticate()
            path.write_text("secret")
            await client.authenticate()

    with EtcdServer(auth="root:secret") as server:
        run(main(server))


def test_many_calls_at_once_share_one_authentication(calm: EtcdServer) -> None:
    async def main() -> None:
        async with Client([calm.endpoint], credentials=ROOT) as client:
            await asyncio.gather(*(client.get(f"a{n}") for n in range(20)))
            assert client.statistics().reauthentications == 0

    run(main())


def test_calls_that_wait_for_one_authentication_each_end_in_their_own_time() -> None:
    """Not one after the other, each after its timeout: the server is frozen, and only one call may authenticate at a
    time."""

    async def main(server: EtcdServer) -> None:
        async with Client([server.endpoint], credentials=ROOT, timeout_s=1) as client:
            await client.get("a")
            server.pause()
            began = time.monotonic()
            ended = await asyncio.gather(*(client.authenticate() for _ in range(6)), return_exceptions=True)
            took_s = time.monotonic() - began
            server.resume()
            assert all(isinstance(error, EtcdUnavailable) for error in ended), ended
            assert took_s < 1 + SLACK_S

    with EtcdServer(auth="root:secret") as server:
        run(main(server))


def test_credentials_work_where_authentication_is_off_or_turned_on_later(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], credentials=ROOT) as client:
            assert await client.put("later", "1")
            for args in (
                ("user", "add", "root:secret"),
                ("user", "grant-role", "root", "root"),
                ("auth", "enable"),
            ):
                await asyncio.to_thread(server.etcdctl, *args)
            assert await client.put("later", "2")
            assert client.statistics().reauthentications == 1

    run(main())


def test_credentials_that_are_incomplete_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="either a password or a password file"):
        Credentials(user="root")
    with pytest.raises(SettingsError, match="either a password or a password file"):
        Credentials(user="root", password="a", password_file="b")
    with pytest.raises(SettingsError, match="user name is empty"):
        Credentials(user="", password="a")
    missing = str(tmp_path / "missing")
    with pytest.raises(SettingsError, match="cannot be read"):
        Client(["etcd"], credentials=Credentials(user="root", password_file=missing))
