"""How to reach etcd: arguments first, then INSTEP_ variables, then etcdctl's variables, then a running `instep local`.

An argument in code always wins over the environment. This module contacts nothing.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from urllib.parse import urlsplit

from instep.discovery import find
from instep.errors import SettingsError
from instep.names import DEFAULT_NAMESPACE, check_namespace

log = logging.getLogger("instep")

DEFAULT_TTL_S = 10
MIN_TTL_S = 2
"""The smallest TTL that a default etcd cluster grants."""
MAX_TTL_S = 3600
DEFAULT_STALL_TIMEOUT_S = 60.0
MIN_STALL_TIMEOUT_S = 1.0
"""Agents check about once a second."""
MAX_STALL_TIMEOUT_S = 604800.0
DEFAULT_GRACE_S = 30.0
"""The default of Kubernetes and of torchrun."""
MIN_GRACE_S = 1.0
MAX_GRACE_S = 604800.0
DEFAULT_PORT = 2379
_TRUE = frozenset(("1", "true", "t", "yes", "y", "on"))
_FALSE = frozenset(("", "0", "false", "f", "no", "n", "off"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where etcd is, and the client's credentials: as paths where possible, and never shown in repr."""

    endpoints: tuple[str, ...]
    namespace: str = DEFAULT_NAMESPACE
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    allow_readable_key: bool = False
    """Accepts key and password files that other users of the machine can read."""
    user: str | None = None
    password_file: str | None = None
    password: str | None = None
    ttl_s: int = DEFAULT_TTL_S
    stall_timeout_s: float = DEFAULT_STALL_TIMEOUT_S
    """A worker that passes no step boundary for this long, and for 20 times its step time, loses the lead."""
    grace_s: float = DEFAULT_GRACE_S
    """The time from a SIGTERM to the expected SIGKILL of a training process."""
    origin: str = "arguments"
    """The source of the endpoints, for messages: the argument, the name of a variable, or `instep local`."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise SettingsError("no etcd endpoint was given: set INSTEP_ETCD, for example https://etcd-0:2379")
        if bool(self.cert) != bool(self.key):
            raise SettingsError(
                "a client certificate needs its key and the reverse: set both INSTEP_CERT and INSTEP_KEY"
            )
        if not self.secure and (self.cacert or self.cert):
            raise SettingsError(
                f"certificates are set, but {self.endpoints[0]} says http://: use https://, or unset INSTEP_CACERT and "
                "INSTEP_CERT"
            )
        if self.user and not (self.password_file or self.password is not None):
            raise SettingsError(
                f"user {self.user!r} has no password: set INSTEP_PASSWORD_FILE to the file that holds it"
            )
        if self.password_file and not self.user:
            raise SettingsError(
                "INSTEP_PASSWORD_FILE is set, but no user: set INSTEP_USER to the user it belongs to, or "
                "unset INSTEP_PASSWORD_FILE"
            )
        if not MIN_TTL_S <= self.ttl_s <= MAX_TTL_S:
            raise SettingsError(f"INSTEP_TTL_S is {self.ttl_s}: it must be between {MIN_TTL_S} and {MAX_TTL_S} seconds")

        if not MIN_STALL_TIMEOUT_S <= self.stall_timeout_s <= MAX_STALL_TIMEOUT_S:  # also for NaN
            raise SettingsError(
                f"INSTEP_STALL_TIMEOUT_S is {self.stall_timeout_s:g}: it must be between {MIN_STALL_TIMEOUT_S:g} and "
                f"{MAX_STALL_TIMEOUT_S:g} seconds"
            )
        if not MIN_GRACE_S <= self.grace_s <= MAX_GRACE_S:
            raise SettingsError(
                f"INSTEP_GRACE_S is {self.grace_s:g}: it must be between {MIN_GRACE_S:g} and {MAX_GRACE_S:g} seconds"
            )

    def __repr__(self) -> str:
        user = f", user={self.user!r}" if self.user else ""
        return f"Settings({','.join(self.endpoints)}, namespace={self.namespace!r}{user}, from {self.origin})"

    @property
    def secure(self) -> bool:
        """Whether the endpoints use TLS."""
        return self.endpoints[0].startswith("https://")

    def to_json(self) -> str:
        """All fields, including secrets: only for a pipe to a process of Instep."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Ignores unknown fields: the writing process may run another version."""
        given = {
            name: value for name, value in json.loads(text).items() if name in {field.name for field in fields(cls)}
        }
        return cls(**{**given, "endpoints": tuple(given["endpoints"])})


def resolve(
    etcd: str | Sequence[str] | Settings | None = None,
    *,
    namespace: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings from the argument, the environment or a running `instep local`.

    Raises SettingsError, with the fix, if no etcd is configured or a value is not usable.
    """
    env = os.environ if environ is None else environ
    if isinstance(etcd, Settings):
        return etcd if namespace is None else replace(etcd, namespace=check_namespace(namespace))
    text, origin = _endpoints_text(etcd, env)
    cert = env.get("INSTEP_CERT") or env.get("ETCDCTL_CERT")
    cacert = env.get("INSTEP_CACERT") or env.get("ETCDCTL_CACERT")
    user, password = _user(env)
    settings = Settings(
        endpoints=parse_endpoints(text, secure_by_default=bool(cacert or cert)),
        namespace=check_namespace(namespace or env.get("INSTEP_NAMESPACE") or DEFAULT_NAMESPACE),
        cacert=_path(cacert),
        cert=_path(cert),
        key=_path(env.get("INSTEP_KEY") or env.get("ETCDCTL_KEY")),
        allow_readable_key=flag(env, "INSTEP_ALLOW_READABLE_KEY"),
        user=user,
        password_file=_path(env.get("INSTEP_PASSWORD_FILE")),
        password=password,
        ttl_s=_ttl(env),
        stall_timeout_s=_seconds(env, "INSTEP_STALL_TIMEOUT_S", DEFAULT_STALL_TIMEOUT_S),
        grace_s=_seconds(env, "INSTEP_GRACE_S", DEFAULT_GRACE_S),
        origin=origin,
    )
    if settings.user is not None and not settings.secure:
        _warn_of_plain_text(settings.user, ",".join(settings.endpoints))
    return settings


@functools.lru_cache(maxsize=16)
def _warn_of_plain_text(user: str, endpoints: str) -> None:
    """Warns once per process, user and endpoint."""
    log.warning(
        "the password of etcd user %r is sent unencrypted to %s: anyone who sees that traffic can read it; use "
        "https:// endpoints",
        user,
        endpoints,
    )


def flag(env: Mapping[str, str], variable: str) -> bool:
    """Whether the variable says yes: 1, true, yes or on in any case; not set, 0, false, no and off say no.

    Raises SettingsError for any other text.
    """
    text = env.get(variable, "")
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise SettingsError(f"{variable} is {text!r}: set it to true or false")
    return word in _TRUE


def parse_endpoints(text: str, *, secure_by_default: bool = False) -> tuple[str, ...]:
    """`https://a:2379,b:2379` as full addresses: a scheme given once holds for those after it.

    Raises SettingsError for an unknown scheme, a missing host, a port that is none, or http mixed with https.
    """
    scheme = "https" if secure_by_default else "http"
    endpoints: list[str] = []
    for part in (piece.strip() for piece in text.split(",")):
        if not part:
            continue
        if "://" in part:
            scheme = part.split("://", 1)[0]
        endpoints.append(_endpoint(part if "://" in part else f"{scheme}://{part}", part))
    if not endpoints:
        raise SettingsError(f"{text!r} names no etcd endpoint: give host:port, for example https://etcd-0:2379")
    if len({endpoint.split("://", 1)[0] for endpoint in endpoints}) > 1:
        raise SettingsError(f"{text!r} mixes http and https: all members of a cluster are reached the same way")
    return tuple(dict.fromkeys(endpoints))


def _endpoint(url: str, given: str) -> str:
    try:
        parts = urlsplit(url)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        raise SettingsError(
            f"the endpoint {_public(given)!r} has no usable host or port: give host:port with a port up to 65535"
        ) from None
    if parts.scheme not in ("http", "https"):
        raise SettingsError(f"the endpoint {_public(given)!r} has the scheme {parts.scheme!r}: use http:// or https://")
    if not parts.hostname or not port or parts.path not in ("", "/") or parts.query or parts.username is not None:
        raise SettingsError(f"the endpoint {_public(given)!r} is not host:port, for example https://etcd-0:2379")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def _public(given: str) -> str:
    """Removes everything before an @, which may be a password."""
    return given.rpartition("@")[2]


def _endpoints_text(etcd: str | Sequence[str] | None, env: Mapping[str, str]) -> tuple[str, str]:
    if etcd:
        return (etcd if isinstance(etcd, str) else ",".join(etcd)), "the argument etcd="
    for variable in ("INSTEP_ETCD", "ETCDCTL_ENDPOINTS"):
        if env.get(variable):
            return env[variable], variable
    found = find()
    if found is None:
        raise SettingsError(
            "no etcd is configured: set INSTEP_ETCD (for example https://etcd-0:2379,https://etcd-1:2379), "
            "or start one for development with 'instep local'"
        )
    return found.endpoint, "instep local"


def _user(env: Mapping[str, str]) -> tuple[str | None, str | None]:
    if env.get("INSTEP_USER"):
        return env["INSTEP_USER"], None
    text = env.get("ETCDCTL_USER")
    if not text:
        return None, None
    user, separator, password = text.partition(":")
    return user, (password if separator else env.get("ETCDCTL_PASSWORD"))


def _path(text: str | None) -> str | None:
    """An absolute path: the node's agent reads the file too, from another working directory."""
    return os.path.abspath(text) if text else None


def _ttl(env: Mapping[str, str]) -> int:
    text = env.get("INSTEP_TTL_S") or str(DEFAULT_TTL_S)
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"INSTEP_TTL_S is {text!r}: it must be a whole number of seconds, such as 10") from None


def _seconds(env: Mapping[str, str], variable: str, default: float) -> float:
    text = env.get(variable) or str(default)
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{variable} is {text!r}: it must be a number of seconds, such as {default:g}") from None
