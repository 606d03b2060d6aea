"""Short constructors for the records of a small run: rank r of node a, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instep.names import FIXED_KEY, INCARNATION_LENGTH
from instep.protocol.desired import DesiredValue
from instep.protocol.membership import RegisteredWorker
from instep.protocol.records import Agreed, Left, Manifest, Member, NodeMembers, Plan, Rejected, Snapshot, View
from instep.protocol.schema import Schema
from instep.scalar import Scalar

DIGEST = "d1"
SCHEMA = Schema(
    {
        "properties": {
            "lr": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.1},
            "clip": {"type": "number", "exclusiveMinimum": 0, "default": 1.0},
            "batch": {"type": "integer", "minimum": 1, "default": 32},
            "dropout": {"type": "number", "default": 0.1, FIXED_KEY: True},
        }
    }
)
ANY = Schema(None)


def incarnation(number: int) -> str:
    return f"{number:0{INCARNATION_LENGTH}d}"


def registered(
    rank: int,
    at: int,
    *,
    world_size: int = 2,
    number: int | None = None,
    node: str = "a",
    digest: str = DIGEST,
    version: str | None = None,
    epoch: int = 0,
) -> RegisteredWorker:
    """A worker that registered at revision `at`; its incarnation is that number too, unless `number` is given."""
    member = Member(
        rank=rank,
        world_size=world_size,
        incarnation=incarnation(at if number is None else number),
        node=node,
        host=f"host-{node}",
        pid=1000 + at,
        schema_digest=digest,
        version=version,
        epoch=epoch,
    )
    return RegisteredWorker(member, at)


def view(nodes: Mapping[str, Mapping[int, int]], *, number: int = 1, fresh: bool = True) -> View:
    """`{"a": {0: 10, 1: 11}}`: rank 0 by incarnation 10 and rank 1 by 11, both on node a."""
    return View(
        number=number,
        world_size=sum(map(len, nodes.values())),
        schema_digest=DIGEST,
        nodes={
            node: NodeMembers(ranks=tuple(ranks), incarnations=tuple(map(incarnation, ranks.values())))
            for node, ranks in nodes.items()
        },
        start=Snapshot(),
        fresh=fresh,
    )


def plan(number: int = 1, *, gate: int = 10, view: int = 1, revision: int = 5, **values: Scalar) -> Plan:
    values = values or {"lr": 0.5}
    return Plan(
        number=number, view=view, gate=gate, values=values, previous=dict.fromkeys(values, 0.1), revision=revision
    )


def agreed(values: Mapping[str, Scalar] | None = None, **more: Any) -> Agreed:
    return Agreed(**{"plan": 0, "view": 1, "values": SCHEMA.defaults() if values is None else dict(values), **more})


def desired(**texts: tuple[str, int]) -> dict[str, DesiredValue]:
    """`lr=("0.5", 7)`: the text and the revision that wrote it."""
    return {name: DesiredValue(name, text, revision) for name, (text, revision) in texts.items()}


def rejected(name: str, revision: int, **more: Any) -> dict[str, Rejected]:
    return {name: Rejected(name=name, value="x", revision=revision, reason="no", **more)}


def left(*ranks: int, view: int = 1, last_step: int = -1) -> Left:
    return Left(view=view, ranks=ranks, last_step=last_step)


def manifest(step: int, token: int = 7, *, view: int = 1, plan: int = 0) -> Manifest:
    return Manifest(
        id=f"{step}-{token}",
        step=step,
        token=token,
        path="x",
        digest="d",
        view=view,
        world_size=2,
        plan=plan,
        rank=0,
        host="h",
        node="a",
        duration_s=0.1,
        committed_at="",
    )
