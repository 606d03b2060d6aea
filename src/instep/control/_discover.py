"""Which runs are in a namespace, without reading what they hold: a run of 10,240 ranks may have 100,000 keys."""

from __future__ import annotations

from instep.errors import SettingsError
from instep.etcd import Client, Listing, Op
from instep.names import check_namespace, check_run_name

_ORDERED = "".join(sorted("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-/"))
"""What names of runs are made of, and the slash that ends one, in etcd's order."""
_OPS = 120
"""Ranges in one txn; etcd allows 128."""
MAX_RUNS = 1000


async def run_names(client: Client, namespace: str, *, limit: int = MAX_RUNS) -> tuple[str, ...]:
    """Names of the runs that have any key, in etcd's order of keys, at most `limit`.

    It jumps from one run to the next: a few requests a run, however many keys the run has.
    """
    base = f"{check_namespace(namespace)}/"
    found: list[str] = []
    path = await _first(client, base, [""])
    while path is not None and len(found) < limit:
        name, slash, _ = path.partition("/")
        if slash and _is_run_name(name):
            found.append(name)
        path = await _first(client, base, _beyond(name + slash))
    return tuple(found)


def _beyond(path: str) -> list[str]:
    """Prefixes, in order, that together hold the keys after `path` and, if it ends with a slash, after all below it."""
    prefixes = [] if path.endswith("/") else [path + char for char in _ORDERED]
    for length in range(len(path) - 1, -1, -1):
        prefixes += [path[:length] + char for char in _ORDERED if char > path[length]]
    return [prefix for prefix in prefixes if prefix != "/"]


def _is_run_name(name: str) -> bool:
    try:
        check_run_name(name)
    except SettingsError:
        return False
    return True


async def _first(client: Client, base: str, prefixes: list[str]) -> str | None:
    """The first key below `base` that starts with one of the prefixes, without `base`."""
    for start in range(0, len(prefixes), _OPS):
        ops = [Op.range(base + prefix, limit=1) for prefix in prefixes[start : start + _OPS]]
        result = await client.txn([], ops)
        for part in result.results:
            if isinstance(part, Listing) and part.kvs:
                return part.kvs[0].key[len(base) :]
    return None
