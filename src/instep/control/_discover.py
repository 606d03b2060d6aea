"""Which runs are in a namespace, without reading what they hold: a run of 10,240 ranks may have 100,000 keys."""

from __future__ import annotations

from instep.errors import SettingsError
from instep.etcd import Client
from instep.names import check_namespace, check_run_name

MAX_RUNS = 20_000
"""Runs that are found; the rest is not looked for."""
_PAGE_SIZE = 2000


async def run_names(client: Client, namespace: str) -> tuple[str, ...]:
    """Names of the runs that have any key, in etcd's order of keys, at most `MAX_RUNS`."""
    return tuple(await runs_found(client, namespace))


async def runs_found(client: Client, namespace: str) -> dict[str, int]:
    """The same, and of each the revision that changed it last, as far as its first keys tell.

    Keys are read page by page, without values. The rest of a run that fills a page is skipped, so this takes one
    request for each run of more than 2000 keys, and one for each 2000 keys of the others.
    """
    base = f"{check_namespace(namespace)}/"
    found: dict[str, int] = {}
    start = ""
    while len(found) < MAX_RUNS:
        page = await client.range(base, start=start, limit=_PAGE_SIZE, page_size=_PAGE_SIZE, keys_only=True)
        for item in page.kvs:
            name, slash, _ = item.key[len(base) :].partition("/")
            if slash and (name in found or _is_run_name(name)):
                found[name] = max(found.get(name, 0), item.mod_revision)
        if len(page.kvs) < _PAGE_SIZE:
            break
        name, slash, _ = page.kvs[-1].key[len(base) :].partition("/")
        start = f"{base}{name}{chr(ord('/') + 1) if slash else chr(0)}"  # the first key after those of the last run
    return dict(list(found.items())[:MAX_RUNS])


def _is_run_name(name: str) -> bool:
    try:
        check_run_name(name)
    except SettingsError:
        return False
    return True
