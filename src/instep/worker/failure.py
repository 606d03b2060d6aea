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
