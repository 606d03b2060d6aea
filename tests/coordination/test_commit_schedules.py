"""Commits under thousands of schedules: late requests, lost replies, replaced leaders."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from coordination.model_etcd import ModelEtcd
from instep.etcd import KeyValue, Listing, Op
from instep.protocol import checkpoints
from instep.protocol.checkpoints import CheckpointReads, CommitOutcome
from instep.protocol.keys import Keys
from instep.protocol.records import Manifest, Pointer
from instep.protocol.transactions import Txn
from instep.recipes.fence import Fence

KEYS = Keys("/training", "gpt-a")
SCHEDULES = 400
STEPS = 60

Mutant = Callable[[Txn], Txn]


@dataclass(frozen=True)
class Attempt:
    """One save of one leader. Two of the same step and token differ in their path."""

    manifest: Manifest
    fence: Fence


class Scene:
    """Leaders one after the other, each with an agent that commits one attempt at a time and may be killed, and a
    network that delivers each request once, at any time."""

    def __init__(self, seed: int, mutant: Mutant) -> None:
        self.random = random.Random(seed)
        self.etcd = ModelEtcd()
        self.mutant = mutant
        self.flying: list[Txn] = []
        self.told: list[tuple[Attempt, CommitOutcome]] = []
        self.attempts = 0
        self.waiting: dict[int, list[Attempt]] = {}
        self.agents: dict[int, Iterator[None]] = {}
        self.fence = self.elect()

    def elect(self) -> Fence:
        for key in [item.key for item in self.etcd.range(KEYS.election).kvs]:
            self.etcd.txn((), (Op.delete(key),))
        key = KEYS.candidate(f"a{self.etcd.revision:04d}")
        self.etcd.put(key, "{}")
        return Fence(key, self.etcd.revision)

    def run(self) -> None:
        for _ in range(STEPS):
            self.random.choice([self.lead, self.save, self.kill, *[self.go_on] * 5, self.deliver])()
        while self.flying:
            self.deliver()

    def lead(self) -> None:
        """Another leader; the previous one continues to commit."""
        if self.random.random() < 0.3:
            self.fence = self.elect()

    def save(self) -> None:
        attempt = self.attempt()
        self.waiting.setdefault(attempt.fence.token, []).append(attempt)

    def kill(self) -> None:
        """Another agent starts, with the commits whose outcome its workers do not know."""
        if self.agents:
            del self.agents[self.random.choice(list(self.agents))]

    def attempt(self) -> Attempt:
        self.attempts += 1
        step, token = self.random.randint(1, 3), self.fence.token
        return Attempt(manifest(step, token, path=f"/{self.attempts}"), self.fence)

    def go_on(self) -> None:
        tokens = [token for token, waiting in self.waiting.items() if waiting]
        if tokens:
            token = self.random.choice(tokens)
            next(self.agents.setdefault(token, self.agent(self.waiting[token])))

    def deliver(self) -> None:
        if self.flying:
            txn = self.flying.pop(self.random.randrange(len(self.flying)))
            self.etcd.txn(txn.compares, txn.then)

    def agent(self, attempts: list[Attempt]) -> Iterator[None]:
        """Commits like `CheckpointRegistry`: reads, sends, and reads again if there was no answer."""
        while True:
            attempt = attempts[0]
            found = self.look(attempt)
            outcome = checkpoints.outcome(attempt.manifest, attempt.fence, found)
            if outcome is not CommitOutcome.OPEN:
                self.told.append((attempt, outcome))
                del attempts[0]
            else:
                yield
                txn = self.mutant(checkpoints.commit(KEYS, attempt.fence, attempt.manifest, found, announced=True))
                if self.random.random() < 0.5:
                    self.flying.append(txn)  # no answer in time: it may arrive, much later
                else:
                    self.etcd.txn(txn.compares, txn.then)
            yield

    def look(self, attempt: Attempt) -> CheckpointReads:
        results = self.etcd.txn((), checkpoints.look(KEYS, attempt.manifest.id, attempt.fence)).results
        items = [item.kvs[0] if item.kvs else None for item in results if isinstance(item, Listing)]
        return CheckpointReads(*items)


def manifest(step: int, token: int, *, path: str = "/x", lineage: tuple[str, ...] = ()) -> Manifest:
    return Manifest(
        id=f"{step}-{token}",
        step=step,
        token=token,
        path=path,
        digest="d",
        view=1,
        world_size=1,
        rank=0,
        host="h",
        node="a",
        duration_s=1.0,
        lineage=lineage,
        committed_at="",
    )


def violations(scene: Scene) -> list[str]:
    """The violations in the whole history of etcd."""
    found: list[str] = []
    committed: dict[str, int] = {}
    highest = 0
    for batch in scene.etcd.history:
        written = {event.kv.key: event.kv for event in batch.events if event.kind == "put"}
        manifests = [_manifest(item) for key, item in written.items() if key.startswith(KEYS.checkpoints)]
        for item in filter(None, manifests):
            committed[item.path] = committed.get(item.path, 0) + 1
            pointer = Pointer.decode(written[KEYS.latest].value)
            if pointer.id != item.id or written[KEYS.saved].value != written[KEYS.latest].value:
                found.append(f"{item.path} was committed without its pointer")
            if item.token < highest:
                found.append(f"{item.path} was committed although a later leader had")
            highest = max(highest, item.token)
    found += [f"{path} was committed {times} times" for path, times in committed.items() if times > 1]
    for attempt, outcome in scene.told:
        if (attempt.manifest.path in committed) != (outcome is CommitOutcome.COMMITTED):
            found.append(f"{attempt.manifest.path} was told {outcome}")
    return found


def _manifest(item: KeyValue) -> Manifest | None:
    return Manifest.decode_or_none(item.value)


def test_every_commit_happens_at_most_once_and_its_saver_is_told_the_outcome() -> None:
    told: set[CommitOutcome] = set()
    for seed in range(SCHEDULES):
        scene = Scene(seed, lambda txn: txn)
        scene.run()
        assert violations(scene) == [], f"seed {seed}"
        told |= {outcome for _, outcome in scene.told}
    assert told == {CommitOutcome.COMMITTED, CommitOutcome.FENCED}


def without(*numbers: int) -> Mutant:
    def mutant(txn: Txn) -> Txn:
        return replace(txn, compares=tuple(c for n, c in enumerate(txn.compares) if n not in numbers))

    return mutant


@pytest.mark.parametrize("mutant", [without(0), without(1, 2)], ids=["without the token", "without the revisions"])
def test_a_commit_that_compares_less_is_caught(mutant: Mutant) -> None:
    for seed in range(SCHEDULES):
        scene = Scene(seed, mutant)
        scene.run()
        if violations(scene):
            return
    pytest.fail("no schedule shows it")
