"""Mutual TLS, certificates replaced on disk, and each kind of failure."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from async_support import run, until
from instep.errors import EtcdDenied, SettingsError
from instep.etcd import Client, Credentials, Tls
from instep.testing import Certificates, EtcdServer


@pytest.fixture(scope="module")
def secure() -> Iterator[EtcdServer]:
    with EtcdServer(tls=True) as running:
        yield running


def tls_of(certificates: Certificates) -> Tls:
    return Tls(cacert=certificates.ca, cert=certificates.cert, key=certificates.key)


def test_mutual_tls_carries_calls_and_watches(secure: EtcdServer) -> None:
    async def main() -> None:
        async with Client([secure.endpoint], tls=tls_of(secure.certificates)) as client:
            async with client.watch("tls/") as watch:
                await client.put("tls/a", "1")
                assert (await anext(watch)).events
            (status,) = await client.status()
            assert status.version == secure.version

    run(main())


def test_user_and_password_work_over_tls_too() -> None:
    async def main(server: EtcdServer) -> None:
        credentials = Credentials(user="root", password="secret")
        async with Client([server.endpoint], tls=tls_of(server.certificates), credentials=credentials) as client:
            assert await client.put("tls/a", "1")

    with EtcdServer(tls=True, auth="root:secret") as server:
        run(main(server))


def test_replaced_certificates_are_picked_up_and_the_watch_loses_nothing(tmp_path: Path) -> None:
    async def main(server: EtcdServer) -> None:
        tls = tls_of(server.certificates)
        async with Client([server.endpoint], tls=tls) as client, client.watch("rotate/") as watch:
            before = client.statistics().reconnects
            found: list[str] = []

            async def read() -> None:
                async for batch in watch:
                    found.extend(e.kv.text for e in batch.events)

            reader = asyncio.create_task(read())
            server.certificates.rotate()
            written = 0

            async def picked_up() -> bool:
                nonlocal written
                await client.put("rotate/a", str(written))
                written += 1
                return client.statistics().reconnects > before and watch.resumes > 0

            await until(picked_up)
            await client.put("rotate/a", "last")
            await until(lambda: found[-1:] == ["last"])
            assert found == [*map(str, range(written)), "last"]
            await watch.close()
            await reader

    with EtcdServer(tls=True) as server:
        run(main(server))


def test_an_incomplete_rotation_changes_nothing(secure: EtcdServer, tmp_path: Path) -> None:
    async def main() -> None:
        paths = {}
        for name, path in (("ca", secure.certificates.ca), ("cert", secure.certificates.cert)):
            paths[name] = shutil.copy(path, tmp_path / name)
        key = shutil.copy(secure.certificates.key, tmp_path / "key")
        os.chmod(key, 0o600)
        async with Client([secure.endpoint], tls=Tls(cacert=paths["ca"], cert=paths["cert"], key=str(key))) as client:
            await client.put("half", "1")
            shutil.copy(secure.certificates.foreign().cert, paths["cert"])
            while client.statistics().calls <= 400:
                await client.put("half", "2")
            assert client.statistics().reconnects == 0

    run(main())


async def denied(client: Client) -> str:
    async with client:
        with pytest.raises(EtcdDenied) as read:
            await client.get("a")
        with pytest.raises(EtcdDenied) as written:
            await client.put("a", "1")
        with pytest.raises(EtcdDenied) as watched:
            await client.watch("a").__aenter__()
        assert str(read.value) == str(written.value) == str(watched.value)
        (status,) = await client.status()
        assert str(status.error) == str(read.value)
        return str(read.value)


def test_a_server_signed_by_an_unknown_authority_is_named(secure: EtcdServer) -> None:
    own, foreign = secure.certificates, secure.certificates.foreign()
    client = Client([secure.endpoint], tls=Tls(cacert=foreign.ca, cert=own.cert, key=own.key))
    message = run(denied(client))
    assert "is not signed by a trusted CA" in message
    assert message.endswith(": give its CA.")


def test_a_client_certificate_that_the_server_does_not_accept_is_named(secure: EtcdServer) -> None:
    own, foreign = secure.certificates, secure.certificates.foreign()
    client = Client([secure.endpoint], tls=Tls(cacert=own.ca, cert=foreign.cert, key=foreign.key))
    assert "does not accept our client certificate" in run(denied(client))


def test_a_missing_client_certificate_is_named(secure: EtcdServer) -> None:
    client = Client([secure.endpoint], tls=Tls(cacert=secure.certificates.ca))
    assert "demands a client certificate" in run(denied(client))


def test_a_certificate_for_another_name_is_named(secure: EtcdServer) -> None:
    async def main() -> str:
        async with forwarded_from("127.0.0.2", secure.port):
            return await denied(Client([f"https://127.0.0.2:{secure.port}"], tls=tls_of(secure.certificates)))

    assert "is not for 127.0.0.2: use a name that it holds" in run(main())


@asynccontextmanager
async def forwarded_from(host: str, port: int) -> AsyncIterator[None]:
    """Another address for the server at 127.0.0.1."""
    serving: set[asyncio.Task[object]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        finally:
            writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)
        finally:
            writer.transport.abort()

    forwarder = await asyncio.start_server(serve, host, port)
    try:
        yield
    finally:
        forwarder.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def test_a_plain_text_port_spoken_to_with_tls_is_named(secure: EtcdServer, shared_server: EtcdServer) -> None:
    client = Client([f"https://127.0.0.1:{shared_server.port}"], tls=tls_of(secure.certificates))
    assert run(denied(client)).endswith("expects plain text but received TLS: use http://.")


def test_a_tls_port_spoken_to_in_plain_text_is_named(secure: EtcdServer) -> None:
    client = Client([f"http://127.0.0.1:{secure.port}"])
    assert run(denied(client)).endswith("expects TLS but received plain text: use https:// and set the CA.")


def test_a_healthy_endpoint_is_used_when_another_refuses_the_handshake(secure: EtcdServer) -> None:
    async def main(other: EtcdServer) -> None:
        endpoints = [f"https://127.0.0.1:{other.port}", secure.endpoint]
        async with Client(endpoints, tls=tls_of(secure.certificates)) as client:
            assert await client.put("mixed", "1")
            assert client.endpoint == secure.endpoint

    with EtcdServer(tls=True) as other:
        run(main(other))


def test_files_that_cannot_be_used_are_refused_when_the_client_is_made(secure: EtcdServer, tmp_path: Path) -> None:
    own = secure.certificates
    missing, text = str(tmp_path / "missing"), tmp_path / "text"
    text.write_text("no certificate")
    text.chmod(0o600)
    with pytest.raises(SettingsError, match="missing cannot be read"):
        Client(["etcd"], tls=Tls(cacert=missing))
    with pytest.raises(SettingsError, match="no certificate authority in PEM form"):
        Client(["etcd"], tls=Tls(cacert=str(text)))
    with pytest.raises(SettingsError, match="give both or none"):
        Tls(cert=own.cert)
    with pytest.raises(SettingsError, match="not a certificate and its unencrypted key"):
        Client(["etcd"], tls=Tls(cert=own.cert, key=str(text)))
    with pytest.raises(SettingsError, match="give a pair that belongs together"):
        Client(["etcd"], tls=Tls(cert=own.cert, key=own.foreign().key))
    with pytest.raises(SettingsError, match="is plain text, but certificates are given"):
        Client(["http://etcd"], tls=Tls(cacert=own.ca))


def test_a_key_that_others_can_read_is_refused_unless_allowed(secure: EtcdServer, tmp_path: Path) -> None:
    own = secure.certificates
    key = shutil.copy(own.key, tmp_path / "key")
    os.chmod(key, 0o604)
    with pytest.raises(SettingsError, match=r"chmod 600.*fsGroup.*INSTEP_ALLOW_READABLE_KEY=1"):
        Client(["etcd"], tls=Tls(cert=own.cert, key=str(key)))
    Client(["etcd"], tls=Tls(cert=own.cert, key=str(key), allow_readable_key=True))
