"""From settings to an etcd client."""

from __future__ import annotations

from instep.etcd import Client, Credentials, Tls
from instep.settings import Settings

TIMEOUT_S = 5.0
"""How long an operator waits for one answer of etcd before being told that there is none."""


def connect(settings: Settings, *, timeout_s: float = TIMEOUT_S) -> Client:
    """A client for these settings, to be used as an async context manager; nothing is contacted yet.

    Raises SettingsError when a certificate, key or password file cannot be used.
    """
    tls = None
    if settings.secure:
        tls = Tls(
            cacert=settings.cacert,
            cert=settings.cert,
            key=settings.key,
            allow_readable_key=settings.allow_readable_key,
        )
    credentials = None
    if settings.user:
        from_file = settings.password_file is not None
        credentials = Credentials(
            user=settings.user,
            password=None if from_file else settings.password,
            password_file=settings.password_file,
        )
    return Client(settings.endpoints, tls=tls, credentials=credentials, timeout_s=timeout_s)
