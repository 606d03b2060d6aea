"""From settings to an etcd client, for people: they wait longer for one answer than an agent does."""

from __future__ import annotations

from instep.connect import open_client
from instep.etcd import Client
from instep.settings import Settings

TIMEOUT_S = 5.0
"""How long an operator waits for one answer of etcd before being told that there is none."""


def connect(settings: Settings, *, timeout_s: float = TIMEOUT_S) -> Client:
    """A client for these settings, to be used as an async context manager; nothing is contacted yet.

    Raises SettingsError when a certificate, key or password file cannot be used.
    """
    return open_client(settings, timeout_s)
