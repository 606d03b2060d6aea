"""Certificates: checked when the client is made, read again when their files change on disk."""

from __future__ import annotations

import contextlib
import os
import ssl
from dataclasses import dataclass
from typing import TypeAlias

from instep.errors import SettingsError
from instep.etcd._files import read_file, read_secret
from instep.etcd._grpc import grpc

Fingerprint: TypeAlias = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Paths of PEM files. Without `cacert`, gRPC's certificate authorities are trusted.

    A key that other users can read is refused unless `allow_readable_key`; root's file may be readable by its
    group, as Kubernetes mounts a secret for a pod with an fsGroup.
    """

    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    allow_readable_key: bool = False

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise SettingsError("A client certificate needs its key and a key its certificate: give both or none.")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the files that are set."""
        return tuple(path for path in (self.cacert, self.cert, self.key) if path is not None)


class TlsFiles:
    """The last usable contents of the files of one `Tls`.

    `generation` rises with each complete replacement.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen: Fingerprint = ()
        self.generation = 0
        self._load()

    def __repr__(self) -> str:
        return f"TlsFiles({', '.join(self._tls.paths) or 'no files'}, generation={self.generation})"

    @property
    def has_certificate(self) -> bool:
        return self._tls.cert is not None

    def context(self) -> ssl.SSLContext:
        """The files as a context of the standard library. Raises SettingsError with the reason."""
        self._read()
        try:
            context = ssl.create_default_context(cafile=self._tls.cacert)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError(
                f"{self._tls.cacert} holds no certificate authority in PEM form: give the CA's certificate."
            ) from error
        context.set_alpn_protocols(["h2"])
        if self._tls.cert is not None:
            self._load_pair(context, self._tls.cert, self._tls.key)
        return context

    def _load_pair(self, context: ssl.SSLContext, cert: str, key: str | None) -> None:
        try:
            # Otherwise OpenSSL asks for the password of an encrypted key on the terminal.
            context.load_cert_chain(cert, key, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "not PEM, or the key is encrypted"
            raise SettingsError(
                f"{cert} and {key} are not a certificate and its unencrypted key in PEM form "
                f"({str(reason).replace('_', ' ').lower()}): give a pair that belongs together."
            ) from error

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC's credentials for a new connection."""
        cacert, cert, key = self._contents
        return grpc.ssl_channel_credentials(root_certificates=cacert, private_key=key, certificate_chain=cert)

    def refresh(self) -> None:
        """Reads the files again if they were replaced by usable ones."""
        if self._fingerprint() != self._seen:
            with contextlib.suppress(SettingsError):
                self._load()

    def _load(self) -> None:
        # Taken first: what changes during this read is read again the next time.
        fingerprint = self._fingerprint()
        self.context()
        self._contents = self._read()
        self._seen = fingerprint
        self.generation += 1

    def _read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The contents of CA, certificate and key."""
        tls = self._tls
        return (
            None if tls.cacert is None else read_file(tls.cacert, "The CA file"),
            None if tls.cert is None else read_file(tls.cert, "The certificate"),
            None if tls.key is None else read_secret(tls.key, "The key", allow_readable=tls.allow_readable_key),
        )

    def _fingerprint(self) -> Fingerprint:
        found = []
        for path in self._tls.paths:
            try:
                status = os.stat(path)
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)
