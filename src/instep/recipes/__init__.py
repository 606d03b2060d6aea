"""Recipes on etcd for asyncio code: session, election and group. See docs/howto/recipes.md.

from instep.recipes import Election, Session
from instep.etcd import Client

async with Client(["127.0.0.1:2379"]) as client, Session(client, ttl_s=10) as session:
    fence = await Election(client, session, "/services/evaluator").campaign("node 3")
    await client.txn([fence.compare()], [...])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instep.recipes.election import Election, ElectionStatistics, Incumbent
    from instep.recipes.fence import Fence
    from instep.recipes.group import Group, GroupMember, GroupStatistics
    from instep.recipes.session import LinkState, Session, SessionStatistics

__all__ = [
    # a lease and the keys on it
    "Session",
    "SessionStatistics",
    "LinkState",
    # one leader at a time
    "Fence",
    "Election",
    "ElectionStatistics",
    "Incumbent",
    # membership
    "Group",
    "GroupMember",
    "GroupStatistics",
]

# Names load when used: worker-side code loads pure modules of this package and must never load grpc.
_HOMES = {
    **dict.fromkeys(("Session", "SessionStatistics", "LinkState"), "session"),
    "Fence": "fence",
    **dict.fromkeys(("Election", "ElectionStatistics", "Incumbent"), "election"),
    **dict.fromkeys(("Group", "GroupMember", "GroupStatistics"), "group"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
