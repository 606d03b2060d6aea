"""Which workers form the next view. Pure: registrations in, a view or refusals out; no clock, no network.

A view has ranks 0 to world_size - 1, all alive, each with one incarnation. If a rank is registered twice, the later
registration counts; but a worker of the view keeps its place while it is alive, and only a process that may replace it
evicts it. Registrations that disagree on world size or schema never block those that agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from instep.protocol.records import Left, Member, NodeMembers, View, WorkerId, parse_ranks

UNKNOWN_VERSION = "unknown"
"""The version of an agent that registers none."""
MAX_VERSIONS = 8


@dataclass(frozen=True, slots=True)
class RegisteredWorker:
    """A live registration. `create_revision` is its order of arrival in etcd."""

    member: Member
    create_revision: int


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Registrations that agree with each other: the latest of each rank."""

    world_size: int
    schema_digest: str
    by_rank: Mapping[int, RegisteredWorker]

    @property
    def complete(self) -> bool:
        return len(self.by_rank) == self.world_size

    @property
    def newest(self) -> int:
        return max(item.create_revision for item in self.by_rank.values())

    @property
    def oldest(self) -> int:
        return min(item.create_revision for item in self.by_rank.values())

    def missing(self) -> tuple[int, ...]:
        return tuple(rank for rank in range(self.world_size) if rank not in self.by_rank)

    def incarnations(self) -> dict[int, str]:
        return {rank: item.member.incarnation for rank, item in self.by_rank.items()}

    def workers(self) -> frozenset[WorkerId]:
        return frozenset(item.member.worker for item in self.by_rank.values())


def groups(registered: Iterable[RegisteredWorker], view: View | None = None) -> tuple[WorkerGroup, ...]:
    """Groups of registrations that agree; the group with the newest arrival first."""
    trains = view.workers() if view is not None else frozenset()
    sorted_in: dict[tuple[int, str], dict[int, RegisteredWorker]] = {}
    for item in sorted(registered, key=lambda item: item.create_revision):
        member = item.member
        if member.rank < member.world_size and member.can_be_named:
            by_rank = sorted_in.setdefault((member.world_size, member.schema_digest), {})
            holder = by_rank.get(member.rank)
            if holder is None or holder.member.worker not in trains or member.may_replace(holder.member):
                by_rank[member.rank] = item
    found = [WorkerGroup(world_size, digest, by_rank) for (world_size, digest), by_rank in sorted_in.items()]
    return tuple(sorted(found, key=lambda group: group.newest, reverse=True))


def without_stale(view: View | None, registered: Iterable[RegisteredWorker]) -> tuple[RegisteredWorker, ...]:
    """Drops workers that have trained in an earlier view and are not in this one: they were replaced while their node
    could not be reached, and hold outdated values."""
    if view is None:
        return tuple(registered)
    members = view.workers()
    return tuple(
        item
        for item in registered
        # A later view is of a history that etcd has lost, or another view with this number.
        if not item.member.view or item.member.view >= view.number or item.member.worker in members
    )


def next_group(
    view: View | None, registered: Iterable[RegisteredWorker], *, outdated: bool = False
) -> WorkerGroup | None:
    """The complete group that must become the next view, or None if the view needs no change. `outdated`: the view does
    not start with the agreed values and is formed again.

    While a worker of the view lives, only a group of the same world size and schema qualifies. Another group is a
    mistake, such as a script that was started without torchrun under the name of a training run.
    """
    items = tuple(registered)
    found = groups(items, view)
    lives = view is not None and any(view.workers() & group.workers() for group in found)
    for group in found:
        if (
            lives
            and view is not None
            and (group.world_size, group.schema_digest) != (view.world_size, view.schema_digest)
        ):
            continue
        if group.complete:
            return None if view is not None and _is_view(view, group, items) and not outdated else group
    return None


def _is_view(view: View, group: WorkerGroup, registered: tuple[RegisteredWorker, ...]) -> bool:
    """Whether the group is the view. False if a worker has been in a later view, or in another view with this number
    that etcd has lost: a worker that is not in the next view learns that from its higher number."""
    members = view.workers()
    known = all(item.member.view <= view.number - (item.member.worker not in members) for item in registered)
    return known and group.incarnations() == view.incarnations()


def staying(view: View | None, group: WorkerGroup, entered: int) -> tuple[int, ...]:
    """Ranks of the group that have trained before. A newcomer counts once all staying ranks have entered its view."""
    began = view is not None and (entered >= view.number or not view.start.digest)
    members = view.workers() if view is not None and began else frozenset()
    return tuple(
        rank for rank, item in sorted(group.by_rank.items()) if item.member.view or item.member.worker in members
    )


def has_entered(view: View, entered: int, registered: Iterable[RegisteredWorker], left: Mapping[str, Left]) -> bool:
    """Whether the newcomers of the view may begin: all staying ranks have entered it, or have ended cleanly."""
    if view.fresh or entered >= view.number or not view.start.digest:
        return True
    members = view.workers()
    here = {item.member.rank for item in registered if item.member.worker in members and _is_in(item.member, view)}
    gone = {rank for record in left.values() for rank in record.ranks}
    return set(parse_ranks(view.staying)) <= here | gone


def _is_in(member: Member, view: View) -> bool:
    """Whether a staying worker has entered the view. A new one counts if it waits for the view: when the view was
    formed it was unknown whether it had begun, and it must not wait for itself."""
    if not member.view:
        return member.awaits == view.number
    return member.view == view.number and member.head is not None


def is_restart(group: WorkerGroup) -> bool:
    """Whether torchrun has restarted workers of the group after a failure, in the same job.

    Limit: unknown for other launchers, and if torchrun restarted only because a node was lost.
    """
    return any(item.member.elastic is not None and item.member.elastic.restarts for item in group.by_rank.values())


def nodes_of(group: WorkerGroup) -> dict[str, NodeMembers]:
    """The nodes of the group as a view names them, with rising ranks."""
    by_node: dict[str, list[Member]] = {}
    for rank in sorted(group.by_rank):
        member = group.by_rank[rank].member
        by_node.setdefault(member.node, []).append(member)
    return {
        node: NodeMembers(
            ranks=tuple(member.rank for member in members),
            incarnations=tuple(member.incarnation for member in members),
        )
        for node, members in by_node.items()
    }


def ranks_by_version(registered: Iterable[RegisteredWorker]) -> dict[str, tuple[int, ...]]:
    """Ranks by the version of Instep of their agent; the first 8 versions by name."""
    found: dict[str, set[int]] = {}
    for item in registered:
        found.setdefault(item.member.version or UNKNOWN_VERSION, set()).add(item.member.rank)
    return {version: tuple(sorted(found[version])) for version in sorted(found)[:MAX_VERSIONS]}


def mixed_versions(group: WorkerGroup) -> tuple[str, ...]:
    """The versions of Instep in the group if its agents run different ones, else empty."""
    versions = tuple(ranks_by_version(group.by_rank.values()))
    return versions if len(versions) > 1 else ()


def mismatched(view: View | None, registered: Iterable[RegisteredWorker]) -> dict[WorkerId, str]:
    """Workers that do not fit the run, each with the reason for a refusal.

    A worker is compared with the view while one of its workers lives, else with the largest group (of equals, the
    older). A short mismatch is no fault: a run that restarts with another world size has one while the old workers
    leave. The caller therefore refuses only workers that have been mismatched for longer than a lease lives.
    """
    items = tuple(registered)
    found = groups(items, view)
    if not found:
        return {}
    in_view = view.workers() if view is not None else frozenset()
    living = [group for group in found if in_view & group.workers()]
    usual = living[0] if living else max(found, key=lambda group: (len(group.by_rank), -group.oldest))
    return {
        item.member.worker: _disagreement(item.member, usual) or _held(item.member, usual)
        for item in items
        if item.member.worker not in in_view
        and (not _agrees(item.member, usual) or _is_held(item.member, usual, in_view))
    }


def missing_ranks(view: View, registered: Iterable[RegisteredWorker], left: Mapping[str, Left]) -> tuple[int, ...]:
    """Ranks of the view that neither live nor have ended cleanly: nothing can be agreed on until they are replaced."""
    alive = {item.member.worker for item in registered}
    return tuple(
        worker[0]
        for node, members in view.nodes.items()
        for worker in zip(members.ranks, members.incarnations, strict=True)
        if worker not in alive and not _has_left(view, left.get(node), worker[0])
    )


def active_nodes(view: View, left: Mapping[str, Left]) -> frozenset[str]:
    """Nodes with at least one rank that has not ended cleanly. A plan needs their acks."""
    return frozenset(
        node
        for node, members in view.nodes.items()
        if not all(_has_left(view, left.get(node), rank) for rank in members.ranks)
    )


def active_ranks(view: View, left: Mapping[str, Left]) -> frozenset[int]:
    """Ranks of the view that have not ended cleanly."""
    return frozenset(
        rank
        for node, members in view.nodes.items()
        for rank in members.ranks
        if not _has_left(view, left.get(node), rank)
    )


def last_step_left(view: View, left: Mapping[str, Left]) -> int:
    """The highest step run by a rank of the view that has left. A gate must be after it."""
    return max(
        (left[node].last_step for node in view.nodes if node in left and left[node].view == view.number), default=-1
    )


def _has_left(view: View, record: Left | None, rank: int) -> bool:
    return record is not None and record.view == view.number and rank in record.ranks


def _agrees(member: Member, usual: WorkerGroup) -> bool:
    same = (member.world_size, member.schema_digest) == (usual.world_size, usual.schema_digest)
    return member.can_be_named and same


def _is_held(member: Member, usual: WorkerGroup, in_view: frozenset[WorkerId]) -> bool:
    holder = usual.by_rank.get(member.rank)
    return holder is not None and holder.member.worker in in_view


def _held(member: Member, usual: WorkerGroup) -> str:
    trains = usual.by_rank[member.rank].member
    return (
        f"rank {member.rank} of this run is process {trains.pid} on {trains.host}, which is alive and in the run, so "
        f"process {member.pid} on {member.host} cannot join as that rank: give it its own RANK or another run name, or "
        "end the other process first; instep.join(..., take_over=True) replaces that process"
    )


def _disagreement(member: Member, usual: WorkerGroup) -> str:
    """The reason of a mismatch; empty if there is none."""
    if _agrees(member, usual):
        return ""
    if not member.can_be_named:
        return (
            f"rank {member.rank} on {member.host} runs another version of Instep than the rank that leads: install one "
            "version everywhere and start all ranks again"
        )
    if member.world_size != usual.world_size:
        return (
            f"rank {member.rank} on {member.host} says the world size is {member.world_size}, the others say "
            f"{usual.world_size}: start all ranks with the same WORLD_SIZE, or give this run another name"
        )
    return (
        f"rank {member.rank} on {member.host} declares other hyperparameters than the other ranks (schema "
        f"{member.schema_digest} instead of {usual.schema_digest}): run the same version of the script everywhere, and "
        "replay the same schedule on all ranks, or none, and give all the same prefer="
    )
