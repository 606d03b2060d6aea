"""Temporary certificates for test servers."""

from __future__ import annotations

import math
import os
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from instep.errors import SettingsError

if TYPE_CHECKING:
    import trustme


class Certificates:
    """A certificate authority in `folder`, with a server certificate and a client certificate.

    `ca`, `cert` and `key` are the paths that a client needs; the key has mode 0600. The client certificate has no
    common name, because etcd would take it for a user. `server` holds the server's certificate and key in one file, so
    it can be replaced atomically; it is valid for loopback and for `hosts`. The harness has its own client certificate,
    `harness`, also in one file with its key, so it still has access when the clients' certificate has expired.
    """

    def __init__(self, folder: Path, hosts: Sequence[str] = ()) -> None:
        self._authority = _authority()
        self._folder = folder
        self._hosts = tuple(hosts)
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = str(folder / "ca.pem")
        self.cert = str(folder / "client.pem")
        self.key = str(folder / "client.key")
        self.server = str(folder / "server.pem")
        self.harness = str(folder / "harness.pem")
        _write(self.ca, self._authority.cert_pem.bytes(), 0o644)
        _write(self.harness, _joined(self._issue(None, "harness.instep.test")), 0o600)
        self.rotate()

    def rotate(self, *, client_expires_in_s: float | None = None, server_expires_in_s: float | None = None) -> None:
        """Replaces the client's and the server's certificates and keys by new ones from the same CA.

        Each file is replaced atomically; for an instant, a reader may see the new certificate with the old key. etcd
        reads its files at every handshake, so it needs no restart. By default, certificates outlive every test. With a
        time below 0 s they have expired already; otherwise they expire up to 1 s late, because they count whole
        seconds. etcd does not check existing connections again.
        """
        server = self._issue(server_expires_in_s, "localhost", "127.0.0.1", "::1", *self._hosts)
        client = self._issue(client_expires_in_s, "client.instep.test")
        _write(self.server, _joined(server), 0o600)
        _write(self.key, client.private_key_pem.bytes(), 0o600)
        _write(self.cert, _chain(client), 0o644)

    def foreign(self) -> Certificates:
        """Certificates of another authority: server and clients do not trust each other."""
        number = sum(1 for _ in self._folder.glob("foreign-*")) + 1
        return Certificates(self._folder / f"foreign-{number}")

    def client_context(self) -> ssl.SSLContext:
        """A TLS context with the client certificate, for clients of the standard library."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        return context

    def harness_context(self) -> ssl.SSLContext:
        """A TLS context with the harness's own certificate."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.harness)
        return context

    def _issue(self, expires_in_s: float | None, *names: str) -> trustme.LeafCert:
        if expires_in_s is None:
            return self._authority.issue_cert(*names)
        expiry = datetime.fromtimestamp(math.ceil(time.time() + expires_in_s), UTC)
        return self._authority.issue_cert(*names, not_after=expiry)

    def __repr__(self) -> str:
        return f"<Certificates {self._folder}>"


def _authority() -> trustme.CA:
    try:
        import trustme  # only servers with TLS need it
    except ImportError as error:
        raise SettingsError("a server with TLS needs trustme: pip install 'instep[testing]'") from error
    return trustme.CA()


def _joined(certificate: trustme.LeafCert) -> bytes:
    return _chain(certificate) + certificate.private_key_pem.bytes()


def _chain(certificate: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems)


def _write(path: str, content: bytes, mode: int) -> None:
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
