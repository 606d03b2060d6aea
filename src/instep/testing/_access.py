"""How clients of a test server authenticate: certificates, users, or not at all."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from instep.errors import SettingsError
from instep.etcd_server.binaries import EtcdBinary
from instep.etcd_server.etcdctl import run_etcdctl
from instep.testing._certificates import Certificates


@dataclass(frozen=True, slots=True)
class Access:
    """A server's certificates (None: no TLS) and users with their passwords (empty: no authentication)."""

    certificates: Certificates | None
    users: Mapping[str, str]

    def context(self) -> ssl.SSLContext | None:
        """The TLS context of the harness, for servers with TLS."""
        return self.certificates.harness_context() if self.certificates else None

    def flags(self, endpoints: Sequence[str], *, with_user: bool = True) -> list[str]:
        """The etcdctl flags for `endpoints` and the first user."""
        flags = [f"--endpoints={','.join(endpoints)}"]
        if self.certificates is not None:
            tls = self.certificates
            flags += [f"--cacert={tls.ca}", f"--cert={tls.harness}", f"--key={tls.harness}"]
        if with_user and self.users:
            flags.append("--user={}:{}".format(*self.first_user()))
        return flags

    def environment(self, endpoints: Sequence[str], folder: Path) -> dict[str, str]:
        """The INSTEP_* variables for a client process. Writes the password to a 0600 file in `folder`."""
        variables = {"INSTEP_ETCD": ",".join(endpoints)}
        if self.certificates is not None:
            tls = self.certificates
            variables |= {"INSTEP_CACERT": tls.ca, "INSTEP_CERT": tls.cert, "INSTEP_KEY": tls.key}
        if self.users:
            user, password = self.first_user()
            path = folder / "password"
            _write_secret(path, password + "\n")
            variables |= {"INSTEP_USER": user, "INSTEP_PASSWORD_FILE": str(path)}
        return variables

    def enable_auth(self, binary: EtcdBinary, endpoints: Sequence[str]) -> None:
        """Creates the users, each with the root role, and enables authentication."""
        flags = self.flags(endpoints, with_user=False)
        # etcd requires a user named root before it enables authentication.
        for user, password in ({"root": self.first_user()[1]} | dict(self.users)).items():
            run_etcdctl(binary, flags, ["user", "add", f"{user}:{password}"])
            run_etcdctl(binary, flags, ["user", "grant-role", user, "root"])
        run_etcdctl(binary, flags, ["auth", "enable"])

    def first_user(self) -> tuple[str, str]:
        """The name and password of the user that the harness itself uses."""
        return next(iter(self.users.items()))


def users(auth: str | Mapping[str, str] | None) -> dict[str, str]:
    """Parses "user:password", or a mapping of users to passwords."""
    if auth is None:
        return {}
    if isinstance(auth, str):
        user, _, password = auth.partition(":")
        auth = {user: password}
    if not auth or not all(_is_user(user, password) for user, password in auth.items()):
        raise SettingsError('auth must be "user:password", a mapping of users to passwords, or None for no users')
    return dict(auth)


def _is_user(user: object, password: object) -> bool:
    """Whether they can be passed to etcdctl, which takes both in one word with a colon."""
    texts = isinstance(user, str) and isinstance(password, str)
    return texts and bool(user) and bool(password) and ":" not in str(user)


def _write_secret(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
