"""Records of a view: the workers that train, and the values that they start with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Self

from pydantic import Field

from instep.protocol.records.base import Record, WorkerId, format_ranks, from_short
from instep.protocol.records.membership import NodeMembers
from instep.scalar import Scalar
from instep.wire.documents import Origin, Snapshot


class View(Record):
    """The workers that train: each rank from 0 to world_size - 1 once, with one incarnation."""

    number: int = Field(ge=1)
    world_size: int = Field(ge=1)
    schema_digest: str
    nodes: dict[str, NodeMembers]
    start: Snapshot
    fresh: bool
    """True if all workers of the view were new: then `start` holds the desired values."""
    staying: str = ""
    """Ranks that have trained before. The others wait until all of these have entered the view, because a registration
    may come from a history that is lost."""
    versions: tuple[str, ...] = ()
    """The agents' versions of Instep if they differ, else empty."""

    def incarnations(self) -> dict[int, str]:
        """Incarnation by rank."""
        return {
            rank: incarnation
            for node in self.nodes.values()
            for rank, incarnation in zip(node.ranks, node.incarnations, strict=True)
        }

    def workers(self) -> frozenset[WorkerId]:
        return frozenset(map(WorkerId._make, self.incarnations().items()))

    def encode(self) -> str:
        document = self.model_dump(exclude_none=True, exclude={"nodes"} if self.versions else {"nodes", "versions"})
        nodes = {name: [format_ranks(node.ranks), "".join(node.incarnations)] for name, node in self.nodes.items()}
        return json.dumps({**document, "nodes": nodes}, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        document = json.loads(text)
        if isinstance(document, dict) and isinstance(document.get("nodes"), dict):
            document["nodes"] = {name: _node_from_short(short) for name, short in document["nodes"].items()}
        return cls.model_validate(document)


def _node_from_short(short: object) -> Mapping[str, object]:
    if not (isinstance(short, list) and len(short) == 2 and all(isinstance(part, str) for part in short)):
        raise ValueError(f"a view identifies a node by its ranks and incarnations, not by {short!r}")
    ranks, incarnations = from_short(*short)
    return {"ranks": ranks, "incarnations": incarnations}


class StartChange(Record):
    """A change that took effect at a fresh start: desired values of one revision. With revision 0, the script's own
    values, or the oldest changes if there were too many.

    The new values are those of the start. `previous` holds what the view would have started with otherwise; a name that
    is not in it had no value.
    """

    revision: int
    names: tuple[str, ...]
    previous: dict[str, Scalar] = Field(default_factory=dict)
    author: str | None = None
    reason: str | None = None
    change_id: str | None = None


class Entered(Record):
    """Newcomers of `view` may begin: all staying ranks have entered it."""

    view: int


class StartOfView(Record):
    """What a fresh view began with. With the plans after it, it gives the values of each step."""

    view: int = Field(ge=1)
    values: dict[str, Scalar]
    plan: int = 0
    """The newest plan before the start."""
    checkpoint: str | None = None
    """The newest committed checkpoint at the start."""
    replays: str | None = None
    """Digest of the replay schedule with the values of the view."""
    at: str | None = None
    """Wall clock of the leader's host, for display only."""
    changes: tuple[StartChange, ...] = ()
    """Changes made while no rank trained, the oldest first. They had no plan."""

    @property
    def before(self) -> dict[str, Scalar]:
        """The values without those changes."""
        held = dict(self.values)
        for change in self.changes:
            for name in change.names:
                held.pop(name, None)
            held |= change.previous
        return held


class FirstStep(Record):
    """The first step of a fresh view, reported by its rank 0 at the first boundary."""

    step: int = Field(ge=0)
    origin: Origin | None = None
    """The checkpoint that its ranks resumed from."""
