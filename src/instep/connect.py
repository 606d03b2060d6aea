"""Opens an etcd client from settings. The only module that knows both."""

from __future__ import annotations

from instep.etcd import Client, Credentials, Tls
from instep.settings import Settings

CALL_TIMEOUT_S = 3.0


def open_client(settings: Settings, timeout_s: float = CALL_TIMEOUT_S) -> Client:
    """Returns a client that connects when first used. Raises SettingsError for files that cannot be read."""
    tls = None
    if settings.secure:
        tls = Tls(
            cacert=settings.cacert,
            cert=settings.cert,
            key=settings.key,
            allow_readable_key=settings.allow_readable_key,
        )
    credentials = None
    if settings.user is not None:
        credentials = Credentials(
            user=settings.user,
            password=None if settings.password_file else settings.password,
            password_file=settings.password_file,
            allow_readable_file=settings.allow_readable_key,
        )
    return Client(settings.endpoints, tls=tls, credentials=credentials, timeout_s=timeout_s)
