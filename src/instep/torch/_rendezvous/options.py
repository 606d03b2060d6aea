"""The rendezvous options of torchrun's command line, validated: endpoints, `--rdzv-conf`, limits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from instep.errors import SettingsError
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Limits
from instep.settings import MAX_TTL_S, MIN_TTL_S, Settings, resolve

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousParameters

MAX_TIMEOUT_S: Final = 7 * 24 * 3600.0
SECONDS: Final[Mapping[str, float]] = {
    "join_timeout": 600.0,
    "last_call_timeout": 30.0,
    "close_timeout": 30.0,
    "connect_timeout": 30.0,
    "read_timeout": 60.0,
    "keep_alive_interval": 5.0,
}
"""RendezvousOptions with their defaults. The names are those of torchrun's other backends where they have one."""
COUNTS: Final[Mapping[str, int]] = {"keep_alive_max_attempt": 3}
TEXTS: Final[Mapping[str, str]] = {
    "namespace": "INSTEP_NAMESPACE",
    "cacert": "INSTEP_CACERT",
    "cert": "INSTEP_CERT",
    "key": "INSTEP_KEY",
    "user": "INSTEP_USER",
    "password_file": "INSTEP_PASSWORD_FILE",
}
"""RendezvousOptions that replace an environment variable."""
UNNAMED: Final = "none"
"""The id that torchrun uses for a job without --rdzv-id."""
FROM_TORCHRUN: Final = "timeout"
"""torchrun always adds it, as a number. Text means that the user set it."""
RENAMED: Final[Mapping[str, str]] = {
    "ca_cert": "cacert",
    "ssl_cert": "cert",
    "ssl_cert_key": "key",
    "etcd_prefix": "namespace",
    "password": "password_file",
    "timeout": "join_timeout",
}
"""Names of options in other backends."""
NEEDLESS: Final[Mapping[str, str]] = {
    "protocol": "write the endpoints as https://host:2379",
    "is_host": "no agent hosts the rendezvous",
    "store_type": "each round has a TCPStore of its own",
    "heartbeat_timeout": "leases take its place: keep_alive_interval times keep_alive_max_attempt is their length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousOptions:
    """The validated options of a handler."""

    settings: Settings
    keys: RendezvousKeys
    limits: Limits
    local_addr: str | None
    ttl_s: int
    join_s: float
    last_call_s: float
    close_s: float
    connect_s: float
    read_s: float


def options_of(params: RendezvousParameters, environ: Mapping[str, str] | None = None) -> RendezvousOptions:
    """Validates the parameters. Raises SettingsError, with the fix, for unusable ones."""
    config = {name: value for name, value in params.config.items() if name != FROM_TORCHRUN or isinstance(value, str)}
    _check_names(config)
    seconds = {name: _seconds(name, config.get(name, default)) for name, default in SECONDS.items()}
    attempts = {name: _count(name, config.get(name, default)) for name, default in COUNTS.items()}
    ttl_s = round(seconds["keep_alive_interval"] * attempts["keep_alive_max_attempt"])
    if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise SettingsError(
            f"keep_alive_interval times keep_alive_max_attempt is {ttl_s} s: it is the time until a dead node is "
            f"noticed, and must be between {MIN_TTL_S} and {MAX_TTL_S} seconds"
        )
    settings = _settings(params.endpoint, config, environ)
    return RendezvousOptions(
        settings=settings,
        keys=_keys(settings, params.run_id),
        limits=Limits(min_nodes=params.min_nodes, max_nodes=params.max_nodes),
        local_addr=params.local_addr,
        ttl_s=ttl_s,
        join_s=seconds["join_timeout"],
        last_call_s=seconds["last_call_timeout"],
        close_s=seconds["close_timeout"],
        connect_s=seconds["connect_timeout"],
        read_s=seconds["read_timeout"],
    )


def variables_of(params: RendezvousParameters) -> Mapping[str, str]:
    """The etcd options of the command line, as environment variables for the scripts."""
    endpoint = params.endpoint.strip()
    return {**({"INSTEP_ETCD": endpoint} if endpoint else {}), **_variables(params.config)}


def _variables(config: Mapping[str, Any]) -> Mapping[str, str]:
    return {variable: str(config[name]) for name, variable in TEXTS.items() if name in config}


def _check_names(config: Mapping[str, Any]) -> None:
    known = (*SECONDS, *COUNTS, *TEXTS)
    for name in config:
        if name in RENAMED:
            raise SettingsError(f"--rdzv-conf has {name!r}, which is {RENAMED[name]!r} with etcd3")
        if name in NEEDLESS:
            raise SettingsError(f"--rdzv-conf has {name!r}, which etcd3 does not need: {NEEDLESS[name]}")
        if name not in known:
            raise SettingsError(f"--rdzv-conf has {name!r}, which etcd3 does not know: it knows {', '.join(known)}")


def _settings(endpoint: str, config: Mapping[str, Any], environ: Mapping[str, str] | None) -> Settings:
    try:
        return resolve(endpoint.strip(), environ={**(os.environ if environ is None else environ), **_variables(config)})
    except SettingsError as error:
        raise SettingsError(f"{error}{_torchrun_hint(str(error))}") from None


def _torchrun_hint(sentence: str) -> str:
    """A hint for torchrun users, for a message about an environment variable."""
    if "set INSTEP_ETCD" in sentence:
        return "; torchrun takes it as --rdzv-endpoint too"
    names = [name for name, variable in TEXTS.items() if re.search(rf"\b{variable}\b", sentence)]
    return f"; torchrun takes {' and '.join(names)} in --rdzv-conf too" if names else ""


def _keys(settings: Settings, run_id: str) -> RendezvousKeys:
    if run_id == UNNAMED:
        raise SettingsError(
            f"this job has no --rdzv-id, so torchrun calls it {UNNAMED!r}, like any other job on this etcd: "
            "give each job an id of its own, such as --rdzv-id=gpt-a"
        )
    try:
        return RendezvousKeys(settings.namespace, run_id)
    except SettingsError as error:
        raise SettingsError(f"--rdzv-id becomes part of etcd's keys: {error}") from None


def _seconds(name: str, value: Any) -> float:
    seconds: float = _number(name, value, float, "a number of seconds, such as 30")
    least = 0.0 if name == "last_call_timeout" else 0.1
    if not least <= seconds <= MAX_TIMEOUT_S:
        raise SettingsError(
            f"--rdzv-conf has {name}={value}: it must be between {least:g} and {MAX_TIMEOUT_S:g} seconds"
        )
    return seconds


def _count(name: str, value: Any) -> int:
    count: int = _number(name, value, int, "a whole number, such as 3")
    if not 1 <= count <= 1000:
        raise SettingsError(f"--rdzv-conf has {name}={value}: it must be between 1 and 1000")
    return count


def _number(name: str, value: Any, kind: Callable[[str], Any], expected: str) -> Any:
    try:
        return kind(str(value))
    except ValueError:
        raise SettingsError(f"--rdzv-conf has {name}={value}: it must be {expected}") from None
