"""What a double barrier looks like at one revision, and what follows from that for one participant. Pure."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from instep.coordination.waiting import because
from instep.errors import BarrierTimeout, InstepError
from instep.etcd import KeyValue


class Step(enum.Enum):
    """What a participant does next about entering."""

    REGISTER = "there is room: create our key"
    OPEN = "enough are here: let the first of them in"
    WAIT = "others are still missing"
    ENTERED = "we were let in"
    FULL = "no room for us in this round"
    TAKEN = "another session has our name"
    CLEAR = "a former registration of our own is in the way: remove it"


@dataclass(frozen=True, slots=True)
class Entrant:
    """One registration; `created` identifies it, `visit` says on whose behalf it was made."""

    name: str
    created: int
    lease_id: int
    visit: str


@dataclass(frozen=True, slots=True)
class Round:
    """The round that was opened last: who was let in, by name, with the create revision of each one's key. Nobody in
    it: it is over."""

    number: int = 0
    members: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def encode(self) -> str:
        return json.dumps({"round": self.number, "members": dict(self.members)})

    @classmethod
    def decode(cls, value: bytes) -> Round:
        """What nobody of ours has written counts as no round."""
        try:
            found = json.loads(value)
            members = {str(name): int(created) for name, created in found["members"].items()}
            return cls(int(found["round"]), MappingProxyType(members))
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()


@dataclass(frozen=True, slots=True)
class Scene:
    """All of a barrier at `revision`: the entrants in order of creation, and the round with its own mod revision."""

    revision: int
    round: Round
    round_revision: int
    entrants: tuple[Entrant, ...]

    @property
    def inside(self) -> tuple[Entrant, ...]:
        """Who was let in and has not left."""
        return tuple(one for one in self.entrants if self.round.members.get(one.name) == one.created)

    @property
    def waiting(self) -> tuple[Entrant, ...]:
        """Who has come, but was not let in yet."""
        return tuple(one for one in self.entrants if self.round.members.get(one.name) != one.created)

    def of(self, name: str) -> Entrant | None:
        return next((one for one in self.entrants if one.name == name), None)


def scene_of(kvs: Iterable[KeyValue], revision: int, *, round_key: str, members: str) -> Scene:
    """Reads a listing of the barrier's prefix; other keys under it are passed over."""
    current, round_revision = Round(), 0
    entrants: list[Entrant] = []
    for item in kvs:
        if item.key == round_key:
            current, round_revision = Round.decode(item.value), item.mod_revision
        elif item.key.startswith(members):
            entrants.append(Entrant(item.key.removeprefix(members), item.create_revision, item.lease, item.text))
    entrants.sort(key=lambda one: (one.created, one.name))
    return Scene(revision, current, round_revision, tuple(entrants))


def next_step(scene: Scene, count: int, name: str, *, registered: bool, ours: bool) -> Step:
    """For the participant `name`. `registered`: the registration of that name is the one we wait with. `ours`: it is
    of a former visit, or on a lease that is lost."""
    present = scene.of(name)
    if present is None:
        return Step.FULL if scene.inside or len(scene.waiting) >= count else Step.REGISTER
    if not registered:
        return Step.CLEAR if ours else Step.TAKEN
    if present in scene.inside:
        return Step.ENTERED
    waiting = scene.waiting
    if scene.inside or waiting.index(present) >= count:
        return Step.FULL  # several registered at once, and the others were first
    return Step.OPEN if len(waiting) >= count else Step.WAIT


def opened(scene: Scene, count: int) -> Round:
    """The next round, with the first `count` of those who wait."""
    first = {one.name: one.created for one in scene.waiting[:count]}
    return Round(scene.round.number + 1, MappingProxyType(first))


def not_all_came(
    scene: Scene | None,
    prefix: str,
    count: int,
    names: Sequence[str] | None,
    name: str,
    waited_s: float,
    *,
    registered: bool,
    trouble: InstepError | None,
) -> BarrierTimeout:
    """The error of the participant `name`, from the last scene that it saw. It never counts itself as missing: one that
    could not register says so."""
    absent: tuple[str, ...] = tuple(one for one in names or () if one != name)
    number = count - 1
    if scene is not None:
        here = {one.name for one in scene.waiting} | {name}
        absent, number = tuple(one for one in absent if one not in here), max(0, count - len(here))
    who = f"{', '.join(absent) or f'{number} of {count}'} missing" if number else "all others are there"
    if scene is None:
        who = "etcd did not say who is there"
    elif registered and not number:
        who = "all are there, but it could not be opened"
    ourselves = "" if registered else f"{name} itself could not register, and "
    return BarrierTimeout(
        f"Not all came to the barrier {prefix} in {waited_s:g} s: {ourselves}{who}.{because(trouble)}",
        waited_s=waited_s,
        missing=absent,
        missing_count=number,
    )


def not_all_left(
    scene: Scene | None, prefix: str, name: str, waited_s: float, trouble: InstepError | None
) -> BarrierTimeout:
    """The same on the way out."""
    inside = scene.inside if scene is not None else ()
    still = tuple(sorted(one.name for one in inside if one.name != name))
    who = ", ".join(still) or "etcd did not say who"
    return BarrierTimeout(
        f"Not all left the barrier {prefix} in {waited_s:g} s: {who}.{because(trouble)}",
        waited_s=waited_s,
        missing=still,
        missing_count=len(still),
    )
