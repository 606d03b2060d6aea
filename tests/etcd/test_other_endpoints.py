"""Endpoints that answer but are not full members: a learner, and etcd's grpc-proxy."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from async_support import run, until
from instep.errors import EtcdUnavailable
from instep.etcd import Client, LeaseKeeper
from instep.etcd_server.ports import free_ports
from instep.testing import EtcdServer

LOOPBACK = "127.0.0.1"


@contextmanager
def program(*command: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def learner(server: EtcdServer, tmp_path: Path) -> Iterator[str]:
    """The endpoint of a learner in the server's cluster."""
    client, peer = (f"http://{LOOPBACK}:{port}" for port in free_ports(2, LOOPBACK))
    server.etcdctl("member", "add", "learner", "--learner", f"--peer-urls={peer}")
    (member,) = [line for line in server.etcdctl("member", "list").splitlines() if ", default, " in line]
    cluster = f"default={member.split(', ')[3]},learner={peer}"
    urls = [f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"]
    more = [f"--initial-advertise-peer-urls={peer}", f"--initial-cluster={cluster}", "--initial-cluster-state=existing"]
    command = [server.binary.path, "--name=learner", f"--data-dir={tmp_path / 'learner'}", *urls, *more]
    with program(*command, log=tmp_path / "learner.log"):
        yield client


def test_a_learner_is_skipped_for_calls_watches_and_leases(server: EtcdServer, learner: str) -> None:
    async def main() -> None:
        async with Client([learner, server.endpoint]) as client:
            await until(lambda: _is_learner(learner))
            await client.put("a", "1")
            assert (await client.txn([], [])).succeeded
            async with client.watch("a") as watch, LeaseKeeper(client, ttl_s=2) as lease:
                await client.put("a", "2", lease=lease.lease_id)
                assert (await anext(watch)).events[0].kv.text == "2"
                await until(lambda: lease.renewals > 2)
                assert lease.valid

    run(main())


def test_a_learner_alone_is_named_and_no_write_is_in_doubt(server: EtcdServer, learner: str) -> None:
    async def main() -> None:
        async with Client([learner], timeout_s=1.0) as client:
            await until(lambda: _is_learner(learner))
            with pytest.raises(EtcdUnavailable, match=r"it is a learner.*name voting members") as refused:
                await client.put("a", "1")
            assert not refused.value.applied_unknown

    run(main())


async def _is_learner(endpoint: str) -> bool:
    async with Client([endpoint], timeout_s=1.0) as client:
        (status,) = await client.status()
        return status.is_learner


def test_behind_a_grpc_proxy_leases_last_and_watches_deliver(server: EtcdServer, tmp_path: Path) -> None:
    (port,) = free_ports(1, LOOPBACK)
    address = f"{LOOPBACK}:{port}"
    command = [server.binary.path, "grpc-proxy", "start", f"--endpoints={server.endpoint}", f"--listen-addr={address}"]

    async def main() -> None:
        async with Client([address]) as client:
            await until(lambda: _answers(client))
            async with client.watch("a", probe_s=0.3, silence_s=1.2) as watch, LeaseKeeper(client, ttl_s=5) as lease:
                await until(lambda: lease.renewals > 2)
                assert lease.state == "connected"
                for number in range(3):
                    reading = asyncio.ensure_future(anext(watch))
                    before = watch.resumes
                    await until(
                        lambda before=before: watch.resumes > before
                    )  # its request is not answered: another stream
                    await client.put("a", str(number))
                    assert (await reading).events[0].kv.text == str(number)
                assert lease.valid
                assert client.link == "connected"

    with program(*command, log=tmp_path / "proxy.log"):
        run(main())


async def _answers(client: Client) -> bool:
    try:
        await client.get("a", timeout_s=1.0)
    except EtcdUnavailable:
        return False
    return True
