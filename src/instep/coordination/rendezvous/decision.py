"""When a round is formed, and of whom. Pure: a scene in, one action out; the node that coordinates carries it out.

The rules are torchrun's: a round is complete with `max_nodes`, or with `min_nodes` once the last call is over; whoever
comes later waits until the others have stopped their workers too. No clock of any host is compared with another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from instep.coordination.rendezvous.records import Cause, Closed, Limits, Registration, Round, Seat


@dataclass(frozen=True, slots=True)
class Registered:
    """A registration as it stands; None where it cannot be read. `token` rises in the order of coming."""

    node: str
    token: int
    registration: Registration | None


@dataclass(frozen=True, slots=True)
class Scene:
    """All that the decision rests on, at one revision of etcd."""

    nodes: tuple[Registered, ...] = ()
    round: Round | None = None
    closed: Closed | None = None
    gone: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    calm: bool = True
    """Etcd has been within reach for so long that a node that is not registered cannot merely have lost its lease in
    the same trouble."""
    last_call_over: bool = False
    readable: bool = True
    """False where the round's document was written by another version: it is not ours to replace."""


@dataclass(frozen=True, slots=True)
class Write:
    """The round as it is to be. `forget` names nodes whose departure or refusal need not be remembered any more."""

    round: Round
    forget: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    node: str
    reason: str


Action: TypeAlias = Write | Refuse


def epoch_of(round_: Round | None, closed: Closed | None) -> int:
    """The epoch that a node would begin or join now."""
    epoch = round_.epoch if round_ is not None else 1
    return max(epoch, closed.epoch + 1) if closed is not None else epoch


@dataclass(frozen=True, slots=True)
class Standing:
    """Who keeps the round going, and who asks for the next, those who come first at the front."""

    epoch: int
    number: int
    limits: Limits | None
    former: frozenset[str] = frozenset()
    """Nodes of an epoch that has ended, whose workers may still run."""
    content: frozenset[str] = frozenset()
    asking: tuple[Registered, ...] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Nodes that are to be refused, each with the reason."""


def decide(now: Scene) -> Action | None:
    """The one thing to do next; None when all is as it should be."""
    if not now.readable:
        return None
    standing = standing_of(now)
    for node, reason in standing.unfit.items():
        if node not in now.refused:
            return Refuse(node, reason)
    if standing.limits is None or standing.former:
        return None
    if standing.content:
        return _about_standing_round(now, standing, standing.limits)
    enough = standing.limits.min_nodes if now.last_call_over else standing.limits.max_nodes
    return _form(now, standing, standing.limits) if len(standing.asking) >= enough else None


def is_last_call(now: Scene) -> bool:
    """Whether there are nodes enough for a round that is due, and room for more. It begins while some still have to
    stop their workers, or a lease has to end."""
    standing = standing_of(now)
    limits = standing.limits
    if limits is None or not now.readable or standing.former:
        return False
    due = not standing.content or (now.round is not None and now.round.wanted)
    return due and limits.min_nodes <= len(standing.asking) < limits.max_nodes


def waits_for_absent(now: Scene) -> bool:
    """Whether a round stands only because nodes that are absent may still be alive."""
    return not now.calm and any(
        seat.node not in {item.node for item in now.nodes} for seat in (now.round.seats if now.round else ())
    )


def standing_of(now: Scene) -> Standing:
    epoch = epoch_of(now.round, now.closed)
    current = now.round if now.round is not None and now.round.epoch == epoch else None
    ours = {
        item.node: (item, item.registration)
        for item in now.nodes
        if item.registration is not None and item.registration.epoch == epoch and item.node not in now.gone
    }
    number = max(
        [now.round.number if now.round is not None else 0, *(registration.round for _, registration in ours.values())]
    )
    seated = {seat.node: rank for rank, seat in enumerate(current.seats)} if current is not None else {}
    asking = [
        item
        for item, registration in ours.values()
        if registration.asks and not (item.node in seated and registration.round < number)
    ]
    names = {item.node for item in asking}
    content = {
        node
        for node, (_, registration) in ours.items()
        if node not in names and (node in seated or registration.round >= number > 0)
    }
    absent = {node for node in seated if node not in ours and node not in now.gone}
    if not now.calm:
        content |= absent
    limits = _limits(current if content else None, asking)
    unfit = _unfit(now, ours, limits)
    asking = [item for item in asking if item.node not in unfit]
    asking.sort(key=lambda item: (seated.get(item.node, len(seated)), item.token))
    former = frozenset(
        item.node for item in now.nodes if item.registration is not None and item.registration.epoch < epoch
    )
    return Standing(epoch, number, limits, former, frozenset(content), tuple(asking), unfit)


def _limits(current: Round | None, asking: list[Registered]) -> Limits | None:
    """Those of the round that stands; else of whoever came first."""
    if current is not None:
        return current.limits
    first = min(asking, key=lambda item: item.token, default=None)
    return first.registration.limits if first is not None and first.registration is not None else None


def _unfit(now: Scene, ours: Mapping[str, tuple[Registered, Registration]], limits: Limits | None) -> Mapping[str, str]:
    unfit = {
        item.node: "its registration was written by another version of Instep: use the same version on all nodes, or "
        "another --rdzv-id"
        for item in now.nodes
        if item.registration is None
    }
    if limits is not None:
        unfit |= {
            node: f"the run has --nnodes={limits} and this node --nnodes={registration.limits}: give all nodes of a "
            "run the same, and each run an --rdzv-id of its own"
            for node, (_, registration) in ours.items()
            if registration.asks and registration.limits != limits
        }
    return unfit


def _about_standing_round(now: Scene, standing: Standing, limits: Limits) -> Write | None:
    current = now.round
    if current is None or current.epoch != standing.epoch or current.number < standing.number:
        # Somebody has deleted it: those who still run can only be asked to meet again.
        return Write(Round(epoch=standing.epoch, number=standing.number, limits=limits, wanted=True))
    room = limits.max_nodes > len(standing.content)
    lost = any(seat.node in now.gone for seat in current.seats)
    wanted = (bool(standing.asking) and room) or lost or not current.seats
    return Write(current.model_copy(update={"wanted": wanted})) if wanted != current.wanted else None


def _form(now: Scene, standing: Standing, limits: Limits) -> Write | None:
    chosen = [item for item in standing.asking if item.registration is not None][: limits.max_nodes]
    first = chosen[0].registration
    if first is None:
        return None
    before = now.round if now.round is not None and now.round.epoch == standing.epoch else None
    cause = _cause(chosen)
    seats = tuple(
        Seat(node=item.node, host=item.registration.host, pid=item.registration.pid)
        for item in chosen
        if item.registration is not None
    )
    made = Round(
        epoch=standing.epoch,
        number=standing.number + 1,
        limits=limits,
        seats=seats,
        store=first.store,
        cause=cause if before is not None else "new",
        restarts=(before.restarts if before is not None else 0) + (cause == "failure"),
    )
    departed = now.refused - {item.node for item in now.nodes}
    return Write(made, tuple(sorted(now.gone | departed)))


def _cause(chosen: list[Registered]) -> Cause:
    causes = {item.registration.cause for item in chosen if item.registration is not None}
    if "failure" in causes:
        return "failure"
    return "membership" if "membership" in causes else "new"
