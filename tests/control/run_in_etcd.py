"""A run as its agents would leave it in etcd: the same records under the same keys, written move by move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from instep.control import Keys, connect
from instep.etcd import Client, Op
from instep.names import INCARNATION_LENGTH
from instep.protocol.commands import directive_after
from instep.protocol.keys import last_part
from instep.protocol.records import (
    Ack,
    Agreed,
    Command,
    Decision,
    Declined,
    Directive,
    Elastic,
    Leader,
    Left,
    Manifest,
    Member,
    Metrics,
    NodeMembers,
    Plan,
    Pointer,
    Receipt,
    Rejected,
    Snapshot,
    View,
)
from instep.scalar import Scalar
from instep.settings import Settings
from instep.testing import EtcdServer

T = TypeVar("T")
TIMEOUT_S = 60.0
SCHEMA = """{"properties": {
  "lr": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.0003},
  "clip": {"type": "number", "exclusiveMinimum": 0, "default": 1.0},
  "sched": {"enum": ["linear", "cosine"], "type": "string", "default": "linear"},
  "note": {"type": "string", "default": "x"},
  "dropout": {"type": "number", "default": 0.1, "x-instep-fixed": true}}, "type": "object"}"""
START: dict[str, Scalar] = {"lr": 3e-4, "clip": 1.0, "sched": "linear", "note": "x", "dropout": 0.1}


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end, within a minute."""

    async def bounded() -> T:
        async with asyncio.timeout(TIMEOUT_S):
            return await work

    return asyncio.run(bounded())


def with_client(server: EtcdServer, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with an open client of this server."""

    async def connected() -> T:
        async with connect(Settings(endpoints=tuple(server.endpoints))) as client:
            return await work(client)

    return run_async(connected())


class RunInEtcd:
    """Writes the records of one run of `nodes` nodes with two ranks each."""

    def __init__(self, client: Client, keys: Keys, *, nodes: int = 2) -> None:
        self.client = client
        self.keys = keys
        self.nodes = {f"node-{i}": (2 * i, 2 * i + 1) for i in range(nodes)}
        self.view = 0
        self.values = dict(START)
        self.plan = 0
        self.directive = Directive()

    @property
    def ranks(self) -> int:
        return 2 * len(self.nodes)

    async def join(self, *, revision: int = 0, values: Mapping[str, Scalar] = {}) -> None:
        """Workers register and a fresh view is formed, with the values it starts from."""
        self.view += 1
        self.values |= values
        incarnations = {
            node: tuple(incarnation_of(self.view * 20_000 + rank) for rank in ranks)
            for node, ranks in self.nodes.items()
        }
        for node, ranks in self.nodes.items():
            for rank, incarnation in zip(ranks, incarnations[node], strict=True):
                await self.register(rank, incarnation, node)
        view = View(
            number=self.view,
            world_size=self.ranks,
            schema_digest="s",
            nodes={n: NodeMembers(ranks=ranks, incarnations=incarnations[n]) for n, ranks in self.nodes.items()},
            start=Snapshot(values=self.values, plan=self.plan),
            fresh=True,
        )
        agreed = Agreed(plan=self.plan, view=self.view, values=self.values, revision=revision)
        leader = Leader(
            node="node-0",
            rank=0,
            incarnation=incarnation_of(1),
            candidate="c",
            token=7,
            host="host-0",
        )
        await self.client.txn(
            [],
            [
                Op.put(self.keys.view, view.encode()),
                Op.put(self.keys.agreed, agreed.encode()),
                Op.put(self.keys.schema, SCHEMA),
                Op.put(self.keys.leader, leader.encode()),
            ],
        )

    async def register(self, rank: int, incarnation: str, node: str, elastic: Elastic | None = None) -> None:
        member = Member(
            rank=rank,
            world_size=self.ranks,
            incarnation=incarnation,
            node=node,
            host=node.replace("node", "host"),
            pid=1,
            schema_digest="s",
            elastic=elastic,
        )
        await self.client.put(self.keys.member(rank, incarnation), member.encode())

    async def die(self) -> None:
        """All registrations go, as when the leases end."""
        await self.client.delete(self.keys.members, prefix=True)

    async def report(self, rank: int, step: int, actions: tuple[str, ...] | None = None, **metrics: float) -> None:
        record = Metrics(rank=rank, step=step, step_time_s=0.04, metrics=metrics, actions=actions)
        await self.client.put(self.keys.metrics_of(rank), record.encode())

    async def desired(self, name: str) -> int:
        """Waits until `name` has been written; returns the revision."""
        key = self.keys.config_of(name)
        async with self.client.watch(key, prefix=False) as watch:
            found = await self.client.get(key)
            if found is None:
                found = (await anext(watch)).events[0].kv
        return found.mod_revision

    async def open(self, revision: int, values: Mapping[str, Scalar], *, gate: int = 100) -> int:
        self.plan += 1
        plan = Plan(
            number=self.plan,
            view=self.view,
            gate=gate,
            values=dict(values),
            previous={name: self.values.get(name) for name in values},
            revision=revision,
            author="ann@host",
            reason="loss spike",
        )
        await self.client.put(self.keys.plan(self.plan), plan.encode())
        return self.plan

    async def ordered(self) -> tuple[str, int, Command]:
        """Waits until a command has been written; returns its id and revision, and what it is."""
        async with self.client.watch(self.keys.commands) as watch:
            found = (await self.client.range(self.keys.commands)).kvs
            kv = found[0] if found else (await anext(watch)).events[0].kv
        return last_part(kv.key), kv.mod_revision, Command.decode(kv.value)

    async def open_order(self, order: Command, command_id: str, revision: int, *, gate: int = 100) -> int:
        self.plan += 1
        plan = Plan(
            number=self.plan,
            view=self.view,
            gate=gate,
            kind=order.kind,
            name=order.name,
            directive=directive_after(order, gate, self.directive),
            values={},
            previous={},
            revision=revision,
            author=order.author,
            reason=order.reason,
            change_id=command_id,
        )
        await self.client.put(self.keys.plan(self.plan), plan.encode())
        return self.plan

    async def commit_order(self, order: Command, command_id: str, *, gate: int = 100) -> None:
        self.directive = directive_after(order, gate, self.directive) or self.directive
        agreed = Agreed(plan=self.plan, view=self.view, values=self.values, directive=self.directive)
        decision = Decision(commit=True, by="leader").encode()
        await self.client.txn(
            [],
            [
                Op.put(self.keys.decision(self.plan), decision),
                Op.put(self.keys.agreed, agreed.encode()),
                Op.delete(self.keys.command(command_id)),
            ],
        )

    async def carry_out(self, *, gate: int = 100) -> None:
        """The whole way of a command that somebody writes."""
        command_id, revision, order = await self.ordered()
        await self.open_order(order, command_id, revision, gate=gate)
        await self.ack()
        await self.commit_order(order, command_id, gate=gate)
        await self.receipt(step=gate)

    async def decline(self, why: str) -> None:
        """What becomes of a command that somebody writes."""
        command_id, revision, order = await self.ordered()
        record = Declined(command=order, revision=revision, why=why)
        await self.client.txn(
            [],
            [
                Op.put(self.keys.declined_of(command_id), record.encode()),
                Op.delete(self.keys.command(command_id)),
            ],
        )

    async def save(self, step: int, *, token: int = 7, rank: int = 3) -> Manifest:
        """A checkpoint is committed."""
        manifest = Manifest(
            id=f"{step}-{token}",
            step=step,
            token=token,
            path=f"/saved/step-{step}-{token}",
            files=2,
            bytes=1_200_000_000,
            digest="d",
            view=self.view,
            world_size=self.ranks,
            rank=rank,
            host="host-1",
            node="node-1",
            duration_s=0.8,
            committed_at="2026-11-23T05:30:27+00:00",
        )
        pointer = Pointer(id=manifest.id, step=step, token=token).encode()
        await self.client.txn(
            [],
            [
                Op.put(self.keys.checkpoint(manifest.id), manifest.encode()),
                Op.put(self.keys.latest, pointer),
                Op.put(self.keys.saved, pointer),
            ],
        )
        return manifest

    async def ack(self, *nodes: str) -> None:
        for node in nodes or self.nodes:
            ack = Ack(node=node, ranks=self.nodes[node])
            await self.client.put(self.keys.ack(self.plan, node), ack.encode())

    async def abort(self, reason: str, *, refused: dict[str, str] | None = None) -> None:
        decision = Decision(commit=False, reason=reason, refused=refused)
        await self.client.put(self.keys.decision(self.plan), decision.encode())

    async def commit(self, values: Mapping[str, Scalar], revision: int, *, gate: int = 100) -> None:
        before = dict(self.values)
        self.values |= values
        agreed = Agreed(
            plan=self.plan, view=self.view, values=self.values, gate=gate, previous=before, revision=revision
        )
        decision = Decision(commit=True, by="leader").encode()
        await self.client.txn(
            [], [Op.put(self.keys.decision(self.plan), decision), Op.put(self.keys.agreed, agreed.encode())]
        )

    async def receipt(self, *nodes: str, step: int = 100) -> None:
        for node in nodes or self.nodes:
            receipt = Receipt(node=node, steps=dict.fromkeys(self.nodes[node], step))
            await self.client.put(self.keys.receipt(self.plan, node), receipt.encode())

    async def leave(self, *nodes: str) -> None:
        for node in nodes or self.nodes:
            left = Left(view=self.view, ranks=self.nodes[node])
            await self.client.put(self.keys.left_of(node), left.encode())

    async def reject(self, name: str, value: str, revision: int, reason: str) -> None:
        record = Rejected(name=name, value=value, revision=revision, reason=reason)
        await self.client.put(self.keys.rejected_of(name), record.encode())

    async def apply(self, name: str, value: Scalar, *, gate: int = 100) -> None:
        """The whole way of a change that somebody writes."""
        revision = await self.desired(name)
        await self.open(revision, {name: value}, gate=gate)
        await self.ack()
        await self.commit({name: value}, revision, gate=gate)
        await self.receipt(step=gate)


def incarnation_of(number: int) -> str:
    return f"{number:0{INCARNATION_LENGTH}x}"
