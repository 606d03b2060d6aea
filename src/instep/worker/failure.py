"""Errors that the agent reports, as the exceptions the training script sees."""

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
from instep.wire import Message

MAX_KIND = 64
MAX_TEXT = 200

_KINDS: dict[str, type[InstepError]] = {
    "denied": EtcdDenied,
    "etcd": EtcdError,
    "refused": JoinRefused,
    "settings": SettingsError,
    "unavailable": EtcdUnavailable,
}


def failure_from(message: Message, rank: int) -> InstepError:
    """The exception for a `failure` message; of a kind not known here it is an AgentError."""
    text = str(message.get("text", ""))
    if message.get("kind") == "evicted":
        return Evicted(text, rank=rank)
    return _KINDS.get(str(message.get("kind")), AgentError)(text)


def in_words(error: BaseException | None) -> Message | None:
    """What the agent is told of the exception that ends this worker."""
    if error is None:
        return None
    try:
        text = str(error)
    except Exception as other:  # noqa: BLE001 - it is somebody else's exception, and this must not hide it
        text = f"(its text cannot be had: {type(other).__name__})"
    return {"kind": type(error).__name__[:MAX_KIND], "text": text[:MAX_TEXT]}
