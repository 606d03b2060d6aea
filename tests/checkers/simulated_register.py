"""Histories that are linearizable because a real register made them, with random delays and lost replies."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from instep.testing.checkers import Operation, Reply, Value

KINDS = ("get", "get", "put", "put", "delete", "create", "cas_revision", "cas_value")


@dataclass
class Register:
    """All keys of a store, with revisions as etcd counts them."""

    revision: int = 1
    keys: dict[str, tuple[Value, int]] = field(default_factory=dict)

    def call(self, kind: str, key: str, args: tuple[Value, ...]) -> Reply:
        found = self.keys.get(key)
        if kind == "get":
            return Reply.absent(revision=self.revision) if found is None else Reply(None, *found, self.revision)
        holds = {
            "put": True,
            "delete": found is not None,
            "create": found is None,
            "cas_revision": found is not None and args[:1] == (found[1],),
            "cas_value": found is not None and args[:1] == (found[0],),
        }[kind]
        if not holds:
            return Reply.refused(self.revision)
        self.revision += 1
        if kind == "delete":
            del self.keys[key]
        else:
            self.keys[key] = (args[-1], self.revision)
        return Reply.wrote(self.revision)


@dataclass(frozen=True)
class Load:
    """What to simulate. With few `values`, writes repeat them; 0: each is new. `told`: which revisions are recorded."""

    operations: int
    keys: int = 1
    clients: int = 3
    unknown: float = 0.05
    values: int = 0
    told: float = 1.0


def simulate(load: Load, seed: int) -> list[Operation]:
    """The history in order of calls. Some unknown ones took effect, late or after all others, and some never."""
    rng = random.Random(seed)
    free_at = [rng.random() for _ in range(load.clients)]
    plans: list[tuple[float, float | None, float, bool, int]] = []
    for _ in range(load.operations):
        client = min(range(load.clients), key=free_at.__getitem__)
        called_at = free_at[client] + rng.random()
        effect_at = called_at + rng.random()
        returned_at = effect_at + rng.random()
        unknown = rng.random() < load.unknown
        late = rng.choice([called_at + rng.random() * 5, None])
        plans.append((called_at, late if unknown else effect_at, returned_at, unknown, client))
        free_at[client] = returned_at
    return sorted(_play(load, plans, rng), key=lambda operation: operation.called_at)


def _play(load: Load, plans: list[tuple[float, float | None, float, bool, int]], rng: random.Random) -> list[Operation]:
    register = Register()
    found = []
    for called_at, effect_at, returned_at, unknown, client in sorted(plans, key=lambda plan: plan[1] or plan[0]):
        kind, key = rng.choice(KINDS), f"k{rng.randrange(load.keys)}"
        args = _arguments(kind, key, register, load, rng)
        reply = Reply() if effect_at is None else register.call(kind, key, args)
        operation = Operation(f"c{client}", kind, key, args, forget(reply, load.told, rng), called_at, returned_at)
        found.append(replace(operation, reply=None, returned_at=None) if unknown else operation)
    return found


def forget(reply: Reply, told: float, rng: random.Random) -> Reply:
    """Omits revisions, like a client that does not return them."""
    return replace(
        reply,
        revision=reply.revision if rng.random() < told else None,
        mod_revision=reply.mod_revision if rng.random() < told else None,
    )


def _arguments(kind: str, key: str, register: Register, load: Load, rng: random.Random) -> tuple[Value, ...]:
    value = f"v{rng.randrange(load.values)}" if load.values else f"v{rng.getrandbits(60):x}"
    found = register.keys.get(key) if rng.random() < 0.7 else None
    if kind in ("get", "delete"):
        return ()
    if kind == "cas_revision":
        return (found[1] if found else rng.randrange(1, register.revision + 1), value)
    if kind == "cas_value":
        return (found[0] if found else f"v{rng.randrange(3)}", value)
    return (value,)
