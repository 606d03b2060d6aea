"""What a recipe takes as a prefix and as a name."""

from __future__ import annotations

from instep.errors import SettingsError

MAX_NAME = 200


def as_prefix(prefix: str) -> str:
    """Ends with exactly one slash, so that `/locks/a` never covers the keys of `/locks/ab` (etcd issue 6278)."""
    if not prefix.strip("/"):
        raise SettingsError("A recipe needs a prefix of its own in etcd, such as /locks/data.")
    return prefix.rstrip("/") + "/"


def check_name(name: str, what: str) -> str:
    """One part of a key: no slash, no control characters, at most 200 characters, not only dots."""
    if not name.strip(".") or len(name) > MAX_NAME or "/" in name or not name.isprintable():
        raise SettingsError(
            f"{name!r} cannot be {what}: give 1 to {MAX_NAME} printable characters without a slash, not only dots."
        )
    return name


def check_timeout(timeout_s: float) -> float:
    if not timeout_s > 0:
        raise SettingsError(f"A time-out of {timeout_s:g} s leaves no time for any answer: give more than 0 s.")
    return timeout_s
