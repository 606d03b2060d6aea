"""When a round is formed, and with which nodes. Pure: a situation in, one action out, which the coordinator carries
out.

The rules are torchrun's: a round is complete with `max_nodes`, or with `min_nodes` once the last call is over. A later
node waits until the others have stopped their workers. Clocks of different hosts are never compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from instep.rendezvous.records import Cause, Closed, Limits, Registration, Round, Seat


@dataclass(frozen=True, slots=True)
class RegisteredNode:
    """A registration in etcd. `token` rises in the order of arrival."""

    node: str
    token: int
    registration: Registration


@dataclass(frozen=True, slots=True)
class RendezvousSituation:
    """The input of the decision, at one revision of etcd."""

    nodes: tuple[RegisteredNode, ...] = ()
    unreadable: frozenset[str] = frozenset()
    """Nodes with a registration of another version of Instep."""
    round: Round | None = None
    closed: Closed | None = None
    gone: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    etcd_stable: bool = True
    """Whether etcd has been available for so long that an absent node has not merely lost its lease in the same
    outage."""
    last_call_over: bool = False
    readable: bool = True
    """False if another version of Instep wrote the round: it must not be replaced."""


@dataclass(frozen=True, slots=True)
class WriteRound:
    """Writes the round. `forget` names nodes whose departure or refusal is deleted."""

    round: Round
    forget: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RefuseNode:
    node: str
    reason: str


RendezvousAction: TypeAlias = WriteRound | RefuseNode


def epoch_of(round_: Round | None, closed: Closed | None) -> int:
    """The epoch that a node begins or joins now."""
    epoch = round_.epoch if round_ is not None else 1
    return max(epoch, closed.epoch + 1) if closed is not None else epoch


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """Which nodes run in the round, and which ask for the next one, in the order of their group rank."""

    epoch: int
    number: int
    limits: Limits | None
    content: frozenset[str]
    asking: tuple[RegisteredNode, ...]
    unfit: Mapping[str, str]
    """Nodes to refuse, each with the reason."""
    waits_for_former: bool
    """Whether nodes of an ended epoch are registered: their workers may still run."""
    waits_for_absent: bool
    """Whether `content` includes nodes that are not registered but may be alive."""
    wanted: bool
    """Whether the current round is marked `wanted`: it has to be formed again."""

    @property
    def is_last_call(self) -> bool:
        """Whether a due round has enough nodes, and room for more. The last call begins while nodes still have to stop
        their workers, or a lease has to end."""
        if self.limits is None or self.waits_for_former:
            return False
        due = self.wanted or not self.content
        return due and self.limits.min_nodes <= len(self.asking) < self.limits.max_nodes


def decide(now: RendezvousSituation) -> RendezvousAction | None:
    """The next action; None if there is nothing to do."""
    if not now.readable:
        return None
    status = round_status(now)
    for node, reason in status.unfit.items():
        if node not in now.refused:
            return RefuseNode(node, reason)
    limits = status.limits
    if limits is None or status.waits_for_former:
        return None
    if status.content:
        return _about_current_round(now, status, limits)
    enough = limits.min_nodes if now.last_call_over else limits.max_nodes
    return _form(now, status, limits) if len(status.asking) >= enough else None


def round_status(now: RendezvousSituation) -> RoundStatus:
    # Registrations name it too: no round begins beside nodes whose round etcd has lost.
    epoch = max([epoch_of(now.round, now.closed), *(item.registration.epoch for item in now.nodes)])
    current = now.round if now.round is not None and now.round.epoch == epoch else None
    seated = {seat.node: rank for rank, seat in enumerate(current.seats)} if current is not None else {}
    ours = [item for item in now.nodes if item.registration.epoch == epoch and item.node not in now.gone]
    number = max([now.round.number if now.round is not None else 0, *(item.registration.round for item in ours)])
    asking = [
        item
        for item in ours
        # A node that was seated since it asked may not have registered that it runs.
        if item.registration.asks and not (item.node in seated and item.registration.round < number)
    ]
    content = {
        item.node
        for item in ours
        if item not in asking and (item.node in seated or item.registration.round >= number > 0)
    }
    absent = set() if now.etcd_stable else seated.keys() - {item.node for item in ours} - now.gone
    content |= absent
    limits = _limits(current if content else None, asking)
    unfit = _unfit(now, ours, limits)
    fit = [item for item in asking if item.node not in unfit]
    return RoundStatus(
        epoch=epoch,
        number=number,
        limits=limits,
        content=frozenset(content),
        asking=tuple(sorted(fit, key=lambda item: (seated.get(item.node, len(seated)), item.token))),
        unfit=unfit,
        waits_for_former=any(item.registration.epoch < epoch and _may_run(item, now.round) for item in now.nodes),
        waits_for_absent=bool(absent),
        wanted=now.round is not None and now.round.wanted,
    )


def _may_run(item: RegisteredNode, round_: Round | None) -> bool:
    """Whether it has had a seat, or has just got one."""
    return item.registration.round > 0 or (round_ is not None and round_.rank_of(item.node) is not None)


def _limits(current: Round | None, asking: list[RegisteredNode]) -> Limits | None:
    """The limits of the current round, or of the node that registered first."""
    if current is not None:
        return current.limits
    return min(asking, key=lambda item: item.token).registration.limits if asking else None


def _unfit(now: RendezvousSituation, ours: list[RegisteredNode], limits: Limits | None) -> Mapping[str, str]:
    version = (
        "its registration was written by another version of Instep: use the same version on all nodes, or another "
        "--rdzv-id"
    )
    unfit = dict.fromkeys(sorted(now.unreadable), version)
    for item in ours:
        said = item.registration
        if limits is not None and said.asks and said.limits != limits:
            unfit[item.node] = (
                f"the run has --nnodes={limits} and this node --nnodes={said.limits}: give all nodes of a run the "
                "same, and each run an --rdzv-id of its own"
            )
    return unfit


def _about_current_round(now: RendezvousSituation, status: RoundStatus, limits: Limits) -> WriteRound | None:
    current = now.round
    if current is None or current.epoch != status.epoch or current.number < status.number:
        return None  # etcd has lost it, and a node that runs in it writes it back
    room = limits.max_nodes > len(status.content)
    lost = any(seat.node in now.gone for seat in current.seats)
    wanted = (bool(status.asking) and room) or lost
    return WriteRound(current.model_copy(update={"wanted": wanted})) if wanted != current.wanted else None


def _form(now: RendezvousSituation, status: RoundStatus, limits: Limits) -> WriteRound:
    chosen = status.asking[: limits.max_nodes]
    before = now.round if now.round is not None and now.round.epoch == status.epoch else None
    cause = _cause({item.registration.cause for item in chosen})
    made = Round(
        epoch=status.epoch,
        number=status.number + 1,
        limits=limits,
        seats=tuple(Seat(node=item.node, host=item.registration.host, pid=item.registration.pid) for item in chosen),
        store=chosen[0].registration.store,
        cause=cause if before is not None else "new",
        restarts=(before.restarts if before is not None else 0) + (cause == "failure"),
    )
    departed = now.refused - now.unreadable - {item.node for item in now.nodes}
    return WriteRound(made, tuple(sorted(now.gone | departed)))


def _cause(causes: set[Cause]) -> Cause:
    """The most severe cause."""
    if "failure" in causes:
        return "failure"
    return "membership" if "membership" in causes else "new"


# -- etcd's history goes back: the nodes that train are the authority, as for values (docs/decisions/0016) ------------


def lost_round(
    known: Round | None, known_closed: Closed | None, shown: Round | None, shown_closed: Closed | None
) -> Round | None:
    """The round to write back; None if etcd shows it, or a later round of the same nodes.

    Its number and epoch are above those in etcd, which may belong to another run with the same name: no node takes it
    for a round that is over. A round of an ended epoch is only written if it is missing.
    """
    if known is None or (shown is not None and _is_known(known, shown)):
        return None
    epoch = epoch_of(shown, shown_closed)
    is_behind = shown is None or shown.number < known.number
    if known_closed is not None and known_closed.epoch >= known.epoch:
        return known if is_behind and epoch <= known_closed.epoch else None
    number = known.number if shown is None or is_behind else shown.number + 1
    return known.model_copy(update={"epoch": max(known.epoch, epoch), "number": number})


def lost_close(known: Closed | None, shown: Closed | None) -> Closed | None:
    """The end of an epoch, if etcd has lost it."""
    return known if known is not None and (shown is None or shown.epoch < known.epoch) else None


def _is_known(known: Round, shown: Round) -> bool:
    """Whether etcd shows the known round or a later one. Node names are random: a common one means the same run."""
    common = {seat.node for seat in known.seats} & {seat.node for seat in shown.seats}
    return shown.is_same_formation(known) or (shown.number > known.number and bool(common))
