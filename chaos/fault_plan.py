"""The kinds of faults, and the plan that a seed gives. Pure: no clock, no process."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

MEMBERS = 3
NODES = 3
RANKS_PER_NODE = 2
WORLD_SIZE = NODES * RANKS_PER_NODE
TTL_S = 3
"""The lease of a node: faults of agents and members last from well below to well beyond it."""


class Lane(StrEnum):
    """Faults of one lane are consecutive; faults of different lanes overlap."""

    SERVERS = "servers"
    AGENTS = "agents"
    WORKERS = "workers"
    HOLDERS = "holders"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault: its weight in its lane, the number of targets, and its duration in seconds."""

    name: str
    lane: Lane
    weight: int
    targets: int
    shortest_s: float = 0.0
    longest_s: float = 0.0


KINDS = (
    Kind("member killed", Lane.SERVERS, 6, MEMBERS, 0.0, 3.0),
    Kind("member frozen", Lane.SERVERS, 6, MEMBERS, 1.0, 8.0),
    Kind("member isolated", Lane.SERVERS, 2, MEMBERS, 1.0, 7.0),
    Kind("quorum killed", Lane.SERVERS, 1, MEMBERS, 1.0, 8.0),
    Kind("quorum frozen", Lane.SERVERS, 1, MEMBERS, 1.0, 8.0),
    Kind("history compacted", Lane.SERVERS, 2, 1),
    Kind("member defragmented", Lane.SERVERS, 1, MEMBERS),
    Kind("agent killed", Lane.AGENTS, 6, NODES),
    Kind("agent frozen", Lane.AGENTS, 3, NODES, 0.3, 2.5 * TTL_S),
    Kind("agent frozen until replaced", Lane.AGENTS, 1, NODES, 11.0, 14.0),
    Kind("agent cut off", Lane.AGENTS, 2, NODES, 0.5, 3 * TTL_S),
    Kind("agent unanswered", Lane.AGENTS, 1, NODES, 0.5, 2 * TTL_S),
    Kind("agent and supervisor killed", Lane.AGENTS, 3, NODES),
    Kind("addresses moved", Lane.AGENTS, 2, NODES, 0.5, 2 * TTL_S),
    Kind("listings lost as a term begins", Lane.AGENTS, 1, 1, 6.0, 9.0),
    Kind("worker killed", Lane.WORKERS, 10, WORLD_SIZE, 0.0, 2.0),
    Kind("node's workers killed", Lane.WORKERS, 2, NODES, 0.0, 2.0),
    Kind("all workers killed", Lane.WORKERS, 1, 1, 0.0, 1.0),
    Kind("worker and agent killed", Lane.WORKERS, 2, WORLD_SIZE, 0.0, 2.0),
    Kind("worker frozen", Lane.WORKERS, 3, WORLD_SIZE, 0.3, 1.5 * TTL_S),
    Kind("interpreter held", Lane.WORKERS, 2, WORLD_SIZE, 0.3, 1.5 * TTL_S),
    Kind("election's leader cut off", Lane.HOLDERS, 1, 1, 0.5, 3 * TTL_S),
)
"""A quorum fault takes two members, all but its target; every other server fault takes one. Of the clients'
election, only the leader is cut off from all members.

Addresses moved: the addresses by which a node reaches etcd are gone, and some time later the names lead to other ones.
Listings lost: the leader's agent is killed, and for that long no new leader receives what it must read first."""

MEAN_GAP_S = {Lane.SERVERS: 5.0, Lane.AGENTS: 8.0, Lane.WORKERS: 4.5, Lane.HOLDERS: 6.0}
LONGEST_GAP_S = 15.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that begins `at_s` seconds after the start of the faults and ends after `for_s`.

    A killed worker or member is restarted after `for_s`.
    """

    at_s: float
    lane: Lane
    kind: str
    target: int
    for_s: float

    def __str__(self) -> str:
        return f"{self.at_s:.1f} s: {self.kind} ({self.target}, {self.for_s:.1f} s)"


def plan(seed: int, duration_s: float) -> list[Fault]:
    """The faults of a run of `duration_s` seconds, by time; the last one ends with the run."""
    chance = random.Random(seed)
    faults = [fault for lane in Lane for fault in _of_lane(lane, chance.getrandbits(64), duration_s)]
    return sorted(faults, key=lambda fault: fault.at_s)


def _of_lane(lane: Lane, seed: int, duration_s: float) -> Iterator[Fault]:
    chance = random.Random(seed)
    kinds = [kind for kind in KINDS if kind.lane is lane]
    bag: list[Kind] = []
    at_s = 0.0
    while True:
        at_s += min(LONGEST_GAP_S, 0.2 + chance.expovariate(1 / MEAN_GAP_S[lane]))
        if not bag:  # shuffled decks: even a short run includes most kinds
            bag = [kind for kind in kinds for _ in range(kind.weight)]
            chance.shuffle(bag)
        kind = bag.pop()
        for_s = chance.uniform(kind.shortest_s, kind.longest_s)
        if at_s + for_s > duration_s:
            return
        yield Fault(round(at_s, 3), lane, kind.name, chance.randrange(kind.targets), round(for_s, 3))
        at_s += for_s


def save(faults: Iterable[Fault], path: Path) -> None:
    path.write_text("".join(json.dumps(asdict(fault)) + "\n" for fault in faults))


def load(path: Path) -> list[Fault]:
    documents = map(json.loads, path.read_text().splitlines())
    return [Fault(**{**document, "lane": Lane(document["lane"])}) for document in documents]
