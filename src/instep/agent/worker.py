"""One local worker as its agent knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from instep.agent.absentee import Absentee
from instep.agent.connection import Connection
from instep.coordination.records import Member
from instep.coordination.schema import Schema
from instep.wire import Message


@dataclass(slots=True, eq=False)
class LocalWorker:
    """Identified by its incarnation; its connection may be lost and made anew while it lives."""

    member: Member
    schema: Schema
    connection: Connection | Absentee
    view: int = 0
    """The view it was welcomed to; 0 while it waits for one."""
    absent: bool = False
    """It lives, and was met by a former agent of this node only."""
    told_leads: bool = False
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_hello(cls, hello: Message, node: str, connection: Connection) -> LocalWorker:
        """Raises ValueError or KeyError for a hello that is none."""
        document: dict[str, Any] | None = hello["schema"]
        schema = Schema(document)
        member = Member(
            rank=hello["rank"],
            world_size=hello["world_size"],
            incarnation=hello["incarnation"],
            node=node,
            host=str(hello["host"])[:64],
            pid=hello["pid"],
            schema_digest=schema.digest,
        )
        return cls(member, schema, connection, view=int(hello.get("view", 0)))

    @property
    def rank(self) -> int:
        return self.member.rank

    @property
    def incarnation(self) -> str:
        return self.member.incarnation

    def record(self) -> Member:
        """Its registration, as of now."""
        return self.member.model_copy(update={"view": self.view})

    @property
    def step(self) -> int:
        """The last boundary it passed; -1 before the first."""
        words = self.connection.words
        return words.step if words is not None else -1

    @property
    def at(self) -> float:
        words = self.connection.words
        return words.at if words is not None else 0.0

    def tell(self, message: Message) -> None:
        self.connection.send(message)

    def beat(self, now: float) -> None:
        words = self.connection.words
        if words is not None:
            words.set_beat(now)
