"""A user with a password, and the authentication token that a client gets for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TypeAlias

from instep.errors import SettingsError
from instep.etcd import _wire
from instep.etcd._connection import Connection
from instep.etcd._failures import details_of
from instep.etcd._files import read_secret
from instep.etcd._grpc import aio, grpc, rpc_error

Metadata: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """An etcd user with a password or a file that holds it. The file is read again at each authentication.

    A file that other users can read is refused unless `allow_readable_file`, by the same rule as a TLS key.
    """

    user: str
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    allow_readable_file: bool = False

    def __post_init__(self) -> None:
        if not self.user:
            raise SettingsError("The etcd user name is empty: give the user's name.")
        if (self.password is None) == (self.password_file is None):
            raise SettingsError(f"Give the etcd user {self.user} either a password or a password file.")

    def read_password(self) -> str:
        """The password now; one trailing line break in the file is not part of it."""
        if self.password is not None:
            return self.password
        path = self.password_file or ""
        data = read_secret(path, "The etcd password file", allow_readable=self.allow_readable_file)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SettingsError(f"The etcd password file {path} is not UTF-8 text: correct it.") from error
        return text.removesuffix("\n").removesuffix("\r")


class Authenticator:
    """Holds the token and renews it; concurrent calls share one renewal.

    The token travels as metadata: gRPC's own call credentials refuse plain-text connections.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._lock = asyncio.Lock()
        self._password: str | None = None
        self.metadata: Metadata | None = None
        self.generation = 0
        self.renewals = 0

    def __repr__(self) -> str:
        return f"Authenticator(user={self.user!r}, generation={self.generation})"

    @property
    def user(self) -> str | None:
        return None if self._credentials is None else self._credentials.user

    @property
    def needed(self) -> bool:
        """Whether a token is needed before the first call."""
        return self._credentials is not None and self.generation == 0

    async def renew(self, connection: Connection, seen: int, timeout_s: float) -> None:
        """Have a token newer than generation `seen` within `timeout_s` seconds, the wait for a renewal under way
        included, or raise gRPC's error for the caller to translate."""
        if self._credentials is None:
            return
        deadline = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._lock.acquire()
        except TimeoutError:
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "no token in time") from None
        try:
            if self.generation != seen:
                return
            request = _wire.AuthenticateRequest(
                name=self._credentials.user, password=self._read_password(self._credentials)
            )
            token = await self._ask(connection, request, max(0.001, deadline - time.monotonic()))
            # etcd without authentication takes no token. If it is enabled later, etcd's answer says so.
            self.metadata = (("token", token),) if token else None
            self.renewals += self.generation > 0
            self.generation += 1
        finally:
            self._lock.release()

    def _read_password(self, credentials: Credentials) -> str:
        """The password in the file, or the last one while the file is being replaced and cannot be read."""
        try:
            self._password = credentials.read_password()
        except SettingsError:
            if self._password is None:
                raise
        return self._password

    async def _ask(self, connection: Connection, request: object, timeout_s: float) -> str | None:
        try:
            # Never with the old token: etcd 3.4 refuses the request that would replace it.
            reply = await connection.calls[_wire.AUTHENTICATE](request, timeout=timeout_s)
        except aio.AioRpcError as error:
            if "authentication is not enabled" in details_of(error):
                return None
            raise
        connection.heard(reply)
        return str(reply.token)
