"""Errors that the agent reports, as the exceptions that the training script sees."""

from __future__ import annotations

from instep.errors import (
    AgentError,
    EtcdDenied,
    EtcdError,
    EtcdUnavailable,
    Evicted,
    InstepError,
    JoinRefused,
    SettingsError,
)
from instep.wire.messages import Failure

MAX_KIND = 64
MAX_TEXT = 200

_KINDS: dict[str, type[InstepError]] = {
    "denied": EtcdDenied,
    "etcd": EtcdError,
    "refused": JoinRefused,
    "settings": SettingsError,
    "unavailable": EtcdUnavailable,
}


def failure_from(message: Failure, rank: int) -> InstepError:
    """The exception for a failure; an AgentError for an unknown kind."""
    if message.kind == "evicted":
        return Evicted(message.text, rank=rank)
    return _KINDS.get(message.kind, AgentError)(message.text)


def in_words(error: BaseException | None) -> tuple[str, str]:
    """Type and text of the exception that ends this worker; empty for none."""
    if error is None:
        return "", ""
    try:
        text = str(error)
    except Exception as other:  # noqa: BLE001 - an exception of the script must not be hidden by its text
        text = f"(its text cannot be read: {type(other).__name__})"
    return type(error).__name__[:MAX_KIND], text[:MAX_TEXT]
