"""Files with certificates, keys and passwords: regular, bounded, and secrets not readable by other users."""

from __future__ import annotations

import os
import stat

from instep.errors import SettingsError

MAX_BYTES = 4 * 1024 * 1024
"""Ten times the size of a bundle of all public certificate authorities."""


def read_file(path: str, what: str) -> bytes:
    """The contents. `what` names the file in errors: "The key".

    Raises SettingsError for a file that is not regular, is larger than 4 MiB, or cannot be read.
    """
    return _read(path, what, secret=False)


def read_secret(path: str, what: str, *, allow_readable: bool = False) -> bytes:
    """The contents of a file that other users must not be able to read, unless `allow_readable`.

    The rule is libpq's: root's file may be readable by its group, because Kubernetes mounts secrets that way for
    a pod with an fsGroup; any other file only by its owner. Raises SettingsError, as `read_file` does too.
    """
    return _read(path, what, secret=not allow_readable)


def _read(path: str, what: str, *, secret: bool) -> bytes:
    try:
        # Without O_NONBLOCK a named pipe blocks until another process writes to it.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SettingsError(f"{what} {path} is not a regular file: give the path of one.")
            if secret and is_exposed(status.st_uid, stat.S_IMODE(status.st_mode)):
                raise SettingsError(_exposed(path, what, status))
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
        raise SettingsError(_unreadable(path, what, error)) from error
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{what} {path} is larger than {MAX_BYTES // 1024 // 1024} MiB: give the right file.")
    return data


def is_exposed(owner: int, mode: int) -> bool:
    """Whether a file with this owner and mode is unsafe for a secret."""
    forbidden = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
    return bool(mode & (forbidden if owner == 0 else forbidden | stat.S_IRGRP))


def _exposed(path: str, what: str, status: os.stat_result) -> str:
    return (
        f"{what} {path} can be read by other users (mode {stat.S_IMODE(status.st_mode):04o}, owner uid "
        f"{status.st_uid}): run `chmod 600 {path}`; in Kubernetes set `defaultMode: 0440` on the secret's volume and "
        "`fsGroup` in the pod's securityContext; or set INSTEP_ALLOW_READABLE_KEY=1 to accept it as it is."
    )


def _unreadable(path: str, what: str, error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if not isinstance(error, PermissionError):
        return f"{what} {path} cannot be read ({reason}): correct the path."
    try:
        status = os.stat(path)
    except OSError:
        return f"{what} {path} cannot be read by uid {os.geteuid()} ({reason}): let it enter the folders of the path."
    return (
        f"{what} {path} cannot be read by uid {os.geteuid()} ({reason}; it has owner uid {status.st_uid} and mode "
        f"{stat.S_IMODE(status.st_mode):04o}): change its owner, or in Kubernetes set `fsGroup` in the pod's "
        "securityContext."
    )
