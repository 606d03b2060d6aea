"""Checkpoints as a worker hears of them: `coordination.records` without what a training process need not load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from instep.scalar import Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Fields that are not known here, of a newer agent, are passed over."""
        return cls(**{field.name: document[field.name] for field in fields(cls) if field.name in document})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(_Heard):
    """A committed checkpoint: it holds the update of `step`, so a run goes on with the next one.

    `path` is its directory as the saver's host names it, `digest` the sha256 of the list of its files there. `token` is
    the saver's fencing token, `config` and `plan` what held at `step`, `lineage` the ids of the checkpoints that its
    training went on from, the newest first.
    """

    id: str
    step: int
    token: int
    path: str
    layout: Literal["plain", "sharded", "custom"] = "custom"
    files: int = 0
    bytes: int = 0
    digest: str
    view: int
    world_size: int
    config: Mapping[str, Scalar]
    plan: int = 0
    rank: int
    host: str
    node: str = ""
    duration_s: float
    lineage: tuple[str, ...] = ()
    committed_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer(_Heard):
    """The newest committed checkpoint. `revision` is etcd's when it became that."""

    id: str
    step: int
    token: int
    view: int = 0
    plan: int = 0
    revision: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What is in the registry at one moment. `ids` are of all checkpoints, `manifests` of those that the answer had
    room for, the newest first, and `newest` is what a start goes on from. `led`: the node's agent knows a leader."""

    manifests: tuple[Manifest, ...]
    ids: frozenset[str]
    newest: str | None
    led: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving(_Heard):
    """A checkpoint that the leader, rank `rank`, has begun to write."""

    id: str
    step: int
    token: int
    rank: int
