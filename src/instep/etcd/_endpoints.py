"""Endpoints as the user writes them, checked."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from instep.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int
    secure: bool

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.address}"

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_named(self) -> bool:
        """Whether the host is a name, which may lead to another address later."""
        try:
            ipaddress.ip_address(self.host.partition("%")[0])
        except ValueError:
            return True
        return False

    @property
    def target(self) -> str:
        """The name for gRPC, which resolves it to all its addresses and tries them in turn."""
        return f"dns:///{self.address}"


def parse_endpoints(texts: Sequence[str], *, tls: bool) -> tuple[Endpoint, ...]:
    """`http://h:p`, `https://h:p` or `h:p` (then `tls` decides). The port may be left out: 2379."""
    if isinstance(texts, str):
        texts = [part for part in texts.split(",") if part.strip()]
    if not texts:
        raise SettingsError("No etcd endpoint was given: name at least one, such as http://127.0.0.1:2379.")
    return tuple(dict.fromkeys(_parse(text.strip(), tls) for text in texts))


def _parse(text: str, tls: bool) -> Endpoint:
    bare = "://" not in text
    try:
        parts = urlsplit(f"//{text}" if bare else text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    extra = parts.path.rstrip("/") or parts.query or parts.fragment or parts.username
    if not host or " " in host or extra or parts.scheme not in ("", "http", "https") or port == 0:
        raise SettingsError(f"{text!r} is not an etcd endpoint: write http://HOST:PORT or https://HOST:PORT.")
    if tls and parts.scheme == "http":
        raise SettingsError(
            f"The endpoint {text} is plain text, but certificates are given: write https://, or remove them."
        )
    return Endpoint(host, port or 2379, tls if bare else parts.scheme == "https")
