"""Deletes desired values: the next start uses those of the script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instep.control._discover import run_names
from instep.control._facts import Facts
from instep.control._runs import run_not_found
from instep.errors import ConfigError
from instep.etcd import Client, DeleteResult, Listing, Op
from instep.names import check_hyperparameter_name
from instep.protocol.keys import Keys

MAX_NAMES = 100


@dataclass(frozen=True, slots=True)
class Unset(Facts):
    """`names` had a desired value and have none now; `without` had none before."""

    run: str
    revision: int
    names: tuple[str, ...]
    without: tuple[str, ...]


async def unset_values(client: Client, keys: Keys, names: Sequence[str]) -> Unset:
    """Delete the desired values of `names`. Ranks that train keep what is agreed; the next start of all ranks uses the
    script's own values.

    Raises RunNotFound, ConfigError for more than 100 names, SettingsError for what is no name, and EtcdUnavailable,
    whose `applied_unknown` tells that it may have happened: do it again then.
    """
    wanted = tuple(dict.fromkeys(check_hyperparameter_name(name) for name in names))
    if len(wanted) > MAX_NAMES:
        raise ConfigError(f"nothing was deleted: {len(wanted)} names are more than the {MAX_NAMES} of one command")
    ops = [Op.range(keys.root, limit=1), *(Op.delete(keys.config_of(name)) for name in wanted)]
    result = await client.txn([], ops)
    anything, *deleted = result.results
    if isinstance(anything, Listing) and not anything.kvs:
        raise run_not_found(keys, await run_names(client, keys.namespace))
    counts = (part.deleted if isinstance(part, DeleteResult) else 0 for part in deleted)
    gone = tuple(name for name, count in zip(wanted, counts, strict=True) if count)
    return Unset(keys.run, result.revision, gone, tuple(name for name in wanted if name not in gone))
