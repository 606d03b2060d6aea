"""Names of runs, hyperparameters and namespaces: they become parts of etcd keys, so they are checked before any use."""

from __future__ import annotations

import re

from instep.errors import SettingsError

DEFAULT_NAMESPACE = "/training"
MAX_LENGTH = 100
INCARNATION_LENGTH = 11
"""Characters of an incarnation: 64 random bits in base 62, the same for all so that views can join them. With its rank
it identifies one process of a run."""
REVISION_BITS = 44
"""Of a fencing token, for the create revision; the run's epoch is above. They last for 5,000 years of 100 writes a
second."""
FIXED_KEY = "x-instep-fixed"
"""Marks, in the JSON Schema, a hyperparameter that is read at the start of a view and refused while it runs."""
PROTECTED_VARIABLE = "INSTEP_PROTECTS_WORKERS_OF"
"""Environment variable that tells spawned children the pid of the process whose DataLoader workers are protected."""
REPLAY_KEY = "x-instep-replay"
"""Holds, in the JSON Schema, the digest of the schedule that the run replays."""
PREFER_KEY = "x-instep-prefer"
"""Is "script", in the JSON Schema, where the script's values win over those in etcd when the run starts."""
MAX_VALUE_BYTES = 64 * 1024
"""The largest JSON text of one hyperparameter."""
MAX_TOTAL_BYTES = 256 * 1024
"""The most that all values of a run may have together: a view holds them four times, and etcd takes 1.5 MiB."""

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
    """For keys that anybody may have written: one that cannot be a name is nobody's hyperparameter."""
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
