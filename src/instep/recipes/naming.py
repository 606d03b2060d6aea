"""Checks of the prefixes and names that a recipe accepts."""

from __future__ import annotations

from instep.errors import SettingsError

MAX_NAME = 200


def as_prefix(prefix: object) -> str:
    """The prefix with exactly one slash at its end: `/locks/a` must not cover `/locks/ab` (etcd issue 6278)."""
    if not isinstance(prefix, str) or not prefix.strip("/"):
        raise SettingsError(f"A recipe needs a prefix of its own in etcd, such as /locks/data, not {prefix!r}.")
    if not prefix.startswith("/") or not prefix.isprintable():
        raise SettingsError(
            f"{prefix!r} cannot be a recipe's prefix: it begins with a slash and holds printable characters only, "
            "such as /locks/data."
        )
    return prefix.rstrip("/") + "/"


def check_name(name: object, what: str) -> str:
    """Checks one part of a key: no slash, no control characters, at most 200 characters, not only dots."""
    if not isinstance(name, str):
        raise SettingsError(f"{name!r} cannot be {what}: give text.")
    if not name.strip(".") or len(name) > MAX_NAME or "/" in name or not name.isprintable():
        raise SettingsError(
            f"{name!r} cannot be {what}: give 1 to {MAX_NAME} printable characters without a slash, not only dots."
        )
    return name


def is_whole(number: object) -> bool:
    """Whether its type is a whole number: True and 2.0 are not."""
    return isinstance(number, int) and not isinstance(number, bool)


def check_timeout(timeout_s: float) -> float:
    if not is_whole(timeout_s) and not isinstance(timeout_s, float):
        raise SettingsError(f"A timeout is a number of seconds, not {timeout_s!r}.")
    if not timeout_s > 0:
        raise SettingsError(f"A timeout of {timeout_s:g} s leaves no time for any answer: give more than 0 s.")
    return timeout_s
