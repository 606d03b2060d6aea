"""Names of runs, hyperparameters and namespaces. They become parts of etcd keys, so each is validated before use."""

from __future__ import annotations

import re

from instep.errors import SettingsError

DEFAULT_NAMESPACE = "/training"
MAX_LENGTH = 100
INCARNATION_LENGTH = 11
"""Characters of an incarnation: 64 random bits in base 62, a fixed length because views concatenate them. Rank and
incarnation identify one process of a run."""
REVISION_BITS = 44
"""The low bits of a fencing token, for the create revision; the epoch of the run is in the bits above. They last for
5,000 years at 100 writes per second."""
FIXED_KEY = "x-instep-fixed"
"""In the JSON Schema: marks a hyperparameter that is read at the start of a view and cannot be changed live."""
PROTECTED_VARIABLE = "INSTEP_PROTECTS_WORKERS_OF"
"""Environment variable for spawned children: the pid of the process whose DataLoader workers are protected."""
REPLAY_KEY = "x-instep-replay"
"""In the JSON Schema: the digest of the schedule that the run replays."""
PREFER_KEY = "x-instep-prefer"
"""In the JSON Schema: "script" if the script's values win over those in etcd when the run starts."""
MAX_VALUE_BYTES = 64 * 1024
"""The largest JSON text of one hyperparameter."""
MAX_TOTAL_BYTES = 256 * 1024
"""The limit for all values of a run together: a view holds them four times, and etcd accepts 1.5 MiB."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_NAMESPACE = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._-]*)+\Z")


def check_run_name(name: object) -> str:
    """Returns `name` if it can name a run; raises SettingsError with the rule otherwise."""
    return _check(name, "run name", "gpt-a")


def check_hyperparameter_name(name: object) -> str:
    """Returns `name` if it can name a hyperparameter; raises SettingsError with the rule otherwise."""
    return _check(name, "hyperparameter name", "lr")


def check_action_name(name: object) -> str:
    """Returns `name` if it can name an action; raises SettingsError with the rule otherwise."""
    return _check(name, "action name", "evaluate")


def check_barrier_name(name: object) -> str:
    """Returns `name` if it can name a barrier; raises SettingsError with the rule otherwise."""
    return _check(name, "barrier name", "epoch-end")


def is_hyperparameter_name(name: str) -> bool:
    """Whether a key, which anybody may have written, is a valid name of a hyperparameter."""
    return len(name) <= MAX_LENGTH and _PART.match(name) is not None


def check_namespace(namespace: object) -> str:
    """Returns the namespace without a trailing slash; raises SettingsError with the rule otherwise."""
    if not isinstance(namespace, str):
        raise SettingsError(f"the namespace must be text such as {DEFAULT_NAMESPACE!r}, not {namespace!r}")
    cleaned = namespace.rstrip("/")
    if len(cleaned) > MAX_LENGTH or not _NAMESPACE.match(cleaned):
        raise SettingsError(
            f"the namespace {namespace!r} is not usable: it starts with a slash and its parts hold only letters, "
            f"digits, '.', '_' and '-', such as {DEFAULT_NAMESPACE!r}, {MAX_LENGTH} characters at most"
        )
    return cleaned


def _check(name: object, what: str, example: str) -> str:
    if not isinstance(name, str):
        raise SettingsError(f"a {what} must be text such as {example!r}, not {name!r}")
    if len(name) > MAX_LENGTH or not _PART.match(name):
        raise SettingsError(
            f"the {what} {_shortened(name)} is not usable: it holds only letters, digits, '.', '_' and '-', starts "
            f"with a letter or digit and has {MAX_LENGTH} characters at most, such as {example!r}"
        )
    return name


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:37] + "...")
