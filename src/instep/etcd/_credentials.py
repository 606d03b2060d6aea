"""A user and where the password comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

from instep.errors import SettingsError
from instep.etcd._files import read_secret


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
