"""Servers with TLS and users admit only clients that prove their identity."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from instep.errors import EtcdError, SettingsError
from instep.etcd_server.etcdctl import run_etcdctl
from instep.etcd_server.health import is_healthy, wait_until
from instep.testing import Certificates, EtcdCluster, EtcdServer, etcd_versions


def server_serial(server: EtcdServer) -> str:
    """The serial number of the certificate that the server shows."""
    context = server.certificates.client_context()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        certificate = secured.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


def test_a_client_without_a_certificate_is_refused(tls_etcd: EtcdServer) -> None:
    nobody = ssl.create_default_context(cafile=tls_etcd.certificates.ca)
    assert not is_healthy(tls_etcd.endpoint, nobody)
    assert is_healthy(tls_etcd.endpoint, tls_etcd.certificates.client_context())


def test_a_certificate_of_another_authority_is_refused(tls_etcd: EtcdServer) -> None:
    foreign = tls_etcd.certificates.foreign()
    context = ssl.create_default_context(cafile=tls_etcd.certificates.ca)
    context.load_cert_chain(foreign.cert, foreign.key)
    assert not is_healthy(tls_etcd.endpoint, context)


def test_a_client_that_trusts_another_authority_refuses_the_server(tls_etcd: EtcdServer) -> None:
    assert not is_healthy(tls_etcd.endpoint, tls_etcd.certificates.foreign().client_context())


def test_a_plain_client_is_refused(tls_etcd: EtcdServer) -> None:
    assert not is_healthy(tls_etcd.endpoint.replace("https", "http"))


def test_rotation_replaces_the_certificates_in_place_without_a_restart() -> None:
    with EtcdServer(tls=True) as server:
        pid, serial = server.pid, server_serial(server)
        old = Path(server.certificates.cert).read_bytes()
        server.certificates.rotate()
        assert Path(server.certificates.cert).read_bytes() != old
        assert server_serial(server) != serial
        assert server.healthy
        assert server.pid == pid


def test_a_client_certificate_expires_and_is_valid_again_after_a_rotation() -> None:
    with EtcdServer(tls=True) as server:
        server.certificates.rotate(client_expires_in_s=0.5)
        assert is_healthy(server.endpoint, server.certificates.client_context())
        assert wait_until(lambda: not is_healthy(server.endpoint, server.certificates.client_context()), timeout_s=5)
        assert server.healthy, "the harness has a certificate of its own"
        assert server.etcdctl("put", "lr", "1") == "OK"
        server.certificates.rotate()
        assert is_healthy(server.endpoint, server.certificates.client_context())


def test_a_server_certificate_that_has_expired_is_refused_by_clients() -> None:
    with EtcdServer(tls=True) as server:
        server.certificates.rotate(server_expires_in_s=-1)
        assert not is_healthy(server.endpoint, server.certificates.client_context())
        server.certificates.rotate()
        assert is_healthy(server.endpoint, server.certificates.client_context())


@pytest.mark.parametrize(("host", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")])
def test_a_server_on_all_addresses_is_reached_over_loopback(host: str, reached: str) -> None:
    with EtcdServer(tls=True, host=host) as server:
        assert server.endpoint == f"https://{reached}:{server.port}"
        assert server.etcdctl("put", "lr", "1") == "OK"


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    certificates.rotate()
    for path in (certificates.key, certificates.server, certificates.harness):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_client_process_gets_the_certificates_through_its_environment(tls_etcd: EtcdServer) -> None:
    variables = tls_etcd.environment()
    assert variables["INSTEP_ETCD"].startswith("https://")
    assert all(Path(variables[name]).is_file() for name in ("INSTEP_CACERT", "INSTEP_CERT", "INSTEP_KEY"))


@pytest.mark.parametrize("version", [binary.version for binary in etcd_versions()])
def test_a_wrong_password_and_no_password_are_refused_and_the_right_one_is_not(version: str) -> None:
    with EtcdServer(version=version, auth="alice:secret") as server:
        server.etcdctl("put", "lr", "1")
        with pytest.raises(EtcdError, match="invalid user ID or password"):
            server.etcdctl("--user=alice:wrong", "get", "lr")
        with pytest.raises(EtcdError, match="user name is empty"):
            run_etcdctl(server.binary, server.access.flags(server.endpoints, with_user=False), ["get", "lr"])


def test_users_survive_a_restart() -> None:
    with EtcdServer(auth={"alice": "a", "bob": "b"}, auth_token_ttl_s=2) as server:
        server.restart()
        assert server.etcdctl("put", "lr", "1") == "OK"
        assert server.etcdctl("--user=bob:b", "get", "lr", "--print-value-only") == "1"


def test_a_client_process_gets_the_password_in_a_file_that_only_its_owner_reads() -> None:
    with EtcdServer(auth="alice:secret") as server:
        variables = server.environment()
        path = Path(variables["INSTEP_PASSWORD_FILE"])
        assert variables["INSTEP_USER"] == "alice"
        assert path.read_text() == "secret\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_tls_and_users_work_together() -> None:
    with EtcdServer(tls=True, auth="alice:secret") as server:
        assert server.etcdctl("put", "lr", "1") == "OK"
        assert "tls auth" in repr(server)


@pytest.mark.parametrize("auth", ["", "alice", "alice:", ":secret", {}, {"alice": ""}, {"a:b": "secret"}, {"alice": 7}])
def test_incomplete_and_empty_users_are_refused(auth: Any) -> None:
    for make in (EtcdServer, EtcdCluster):
        with pytest.raises(SettingsError, match="user:password"):
            make(auth=auth)
