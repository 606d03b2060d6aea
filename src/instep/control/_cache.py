"""The keys of one run as records: filled by a read of etcd, kept up to date by events. Pure.

Unreadable records are skipped, as the agents do: anyone with access to etcd can write one. The leader's cache holds
other keys, each at a revision of its own, because its transactions compare them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self, TypeVar

from instep.control._torchrun import Rendezvous
from instep.etcd import KeyValue, Listing, TxnResult
from instep.names import MAX_VALUE_BYTES
from instep.protocol.commands import PendingCommand
from instep.protocol.desired import DesiredValue
from instep.protocol.keys import Keys
from instep.protocol.membership import RegisteredWorker, active_ranks, missing_ranks
from instep.protocol.records import (
    Ack,
    Agreed,
    Attempts,
    Change,
    Command,
    Decision,
    Declined,
    Directive,
    Epoch,
    FailedSave,
    FailedSaves,
    FirstStep,
    Leader,
    Left,
    Manifest,
    Member,
    Metrics,
    Plan,
    Pointer,
    Receipt,
    Rejected,
    Saving,
    StartOfView,
    View,
)
from instep.protocol.schema import Schema

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Saved:
    """A committed checkpoint, and the revision that committed it."""

    manifest: Manifest
    revision: int


@dataclass(slots=True)
class RunCache:
    """What is known of one run. Fields that were not read are empty, such as members and metrics."""

    keys: Keys
    revision: int = 0
    schema: Schema = field(default_factory=lambda: Schema(None))
    schema_revision: int = 0
    view: View | None = None
    agreed: Agreed | None = None
    agreed_revision: int = 0
    leader: Leader | None = None
    epoch: Epoch | None = None
    desired: dict[str, DesiredValue] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    rejected: dict[str, Rejected] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    acks: dict[int, dict[str, Ack]] = field(default_factory=dict)
    receipts: dict[int, dict[str, Receipt]] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)
    members: dict[str, RegisteredWorker] = field(default_factory=dict)
    metrics: dict[int, Metrics] = field(default_factory=dict)
    leases: dict[int, set[int]] = field(default_factory=dict)
    """Ranks registered on each lease, which are those of one node."""
    silent_s: dict[int, int] = field(default_factory=dict)
    """Seconds since the last renewal, for leases that were not renewed for a while; only if they were asked about."""
    commands: dict[str, PendingCommand] = field(default_factory=dict)
    """Commands that are not decided yet."""
    declined: dict[str, Declined] = field(default_factory=dict)
    saved: dict[str, Saved] = field(default_factory=dict)
    latest: Pointer | None = None
    saving: Saving | None = None
    attempts: Attempts | None = None
    failed_saves: FailedSaves | None = None
    failed_revision: int = 0
    starts: dict[int, StartOfView] = field(default_factory=dict)
    first_steps: dict[int, FirstStep] = field(default_factory=dict)
    """What each view began with, and at which step."""
    rendezvous: Rendezvous = field(default_factory=Rendezvous)
    empty: bool = True
    """True while no key of the run has been seen."""

    @classmethod
    def of_txn(cls, keys: Keys, result: TxnResult) -> Self:
        """What a transaction has read, at its revision."""
        cache = cls(keys)
        for part in result.results:
            if isinstance(part, Listing):
                cache.put_all(part.kvs)
        cache.revision = result.revision
        return cache

    def put_all(self, kvs: Iterable[KeyValue]) -> None:
        for kv in kvs:
            self.put(kv)

    def put(self, kv: KeyValue) -> None:
        """Record one key as etcd holds it."""
        if not kv.key.startswith(self.keys.root):
            return
        self.empty = False
        self.revision = max(self.revision, kv.mod_revision)
        match kv.key[len(self.keys.root) :].split("/"):
            case ["state", *rest]:
                self._put_state(rest, kv)
            case ["reports", *rest]:
                self._put_report(rest, kv)
            case ["config", name]:
                # Longer values are refused anyway.
                self.desired[name] = DesiredValue(name, kv.text[: MAX_VALUE_BYTES + 1], kv.mod_revision)
            case ["changes", change_id]:
                _keep(self.changes, change_id, Change.decode_or_none(kv.value))
            case ["commands", name]:
                self.commands[name] = PendingCommand(name, kv.mod_revision, Command.decode_or_none(kv.value))
            case ["checkpoints", "latest"]:
                self.latest = Pointer.decode_or_none(kv.value)
            case ["checkpoints", name]:
                manifest = Manifest.decode_or_none(kv.value)
                _keep(self.saved, name, Saved(manifest, kv.mod_revision) if manifest else None)
            case ["attempts"]:
                self.attempts = Attempts.decode_or_none(kv.value)
            case ["rendezvous", *rest]:
                self.rendezvous.put(rest, kv)
            case ["history", "failed-saves"]:
                self.failed_saves, self.failed_revision = FailedSaves.decode_or_none(kv.value), kv.mod_revision
            case ["history", "starts", view] if view.isdecimal():
                _keep(self.starts, int(view), StartOfView.decode_or_none(kv.value))
            case ["history", "starts", view, "step"] if view.isdecimal():
                _keep(self.first_steps, int(view), FirstStep.decode_or_none(kv.value))
            case ["schema"]:
                self.schema, self.schema_revision = Schema.decode(kv.value), kv.mod_revision

    def delete(self, key: str) -> None:
        """Take in that a key is gone; only of those whose absence says something."""
        match key.removeprefix(self.keys.root).split("/"):
            case ["config", name]:
                self.desired.pop(name, None)
            case ["state", "rejected", name]:
                self.rejected.pop(name, None)
            case ["state", "leader"]:
                self.leader = None
            case ["state", "saving"]:
                self.saving = None
            case ["state", "declined", name]:
                self.declined.pop(name, None)
            case ["commands", name]:
                self.commands.pop(name, None)
            case ["checkpoints", name]:
                self.saved.pop(name, None)
            case ["reports", "left", node]:
                self.left.pop(node, None)

    def _put_state(self, path: list[str], kv: KeyValue) -> None:
        match path:
            case ["view"]:
                self.view = View.decode_or_none(kv.value)
            case ["agreed"]:
                self.agreed, self.agreed_revision = Agreed.decode_or_none(kv.value), kv.mod_revision
            case ["leader"]:
                self.leader = Leader.decode_or_none(kv.value)
            case ["epoch"]:
                self.epoch = Epoch.decode_or_none(kv.value)
            case ["rejected", name]:
                _keep(self.rejected, name, Rejected.decode_or_none(kv.value))
            case ["declined", name]:
                _keep(self.declined, name, Declined.decode_or_none(kv.value))
            case ["saving"]:
                self.saving = Saving.decode_or_none(kv.value)
            case ["plans", number] if number.isdecimal():
                _keep(self.plans, int(number), Plan.decode_or_none(kv.value))
            case ["plans", number, "decision"] if number.isdecimal():
                _keep(self.decisions, int(number), Decision.decode_or_none(kv.value))

    def _put_report(self, path: list[str], kv: KeyValue) -> None:
        match path:
            case ["acks", number, node] if number.isdecimal():
                _keep(self.acks.setdefault(int(number), {}), node, Ack.decode_or_none(kv.value))
            case ["receipts", number, node] if number.isdecimal():
                _keep(self.receipts.setdefault(int(number), {}), node, Receipt.decode_or_none(kv.value))
            case ["left", node]:
                _keep(self.left, node, Left.decode_or_none(kv.value))
            case ["members", *_]:
                member = Member.decode_or_none(kv.value)
                _keep(self.members, kv.key, RegisteredWorker(member, kv.create_revision) if member else None)
                if member is not None and kv.lease:
                    self.leases.setdefault(kv.lease, set()).add(member.rank)
            case ["metrics", rank] if rank.isdecimal():
                _keep(self.metrics, int(rank), Metrics.decode_or_none(kv.value))

    def went_back(self, epoch: int, revision: int) -> bool:
        """Whether etcd's history has gone back since `revision` was written in `epoch`."""
        noticed = self.epoch is not None and self.epoch.number > epoch and self.epoch.author is None
        return noticed or self.revision < revision

    # -- ranks -----------------------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether any worker holds its registration, which lives on its node's lease."""
        return bool(self.members)

    def ranks(self) -> set[int]:
        """Ranks of the view."""
        return set(self.view.incarnations()) if self.view is not None else set()

    def ranks_active(self) -> set[int]:
        """Ranks of the view that have not ended cleanly."""
        return set(active_ranks(self.view, self.left)) if self.view is not None else set()

    def ranks_left(self) -> set[int]:
        """Ranks of the view that ended cleanly."""
        return self.ranks() - self.ranks_active()

    def ranks_missing(self) -> set[int]:
        """Ranks of the view that are neither alive nor ended cleanly; needs the members."""
        return set(missing_ranks(self.view, self.members.values(), self.left)) if self.view is not None else set()

    def ranks_silent(self) -> set[int]:
        """Ranks whose node has not renewed its lease for a while, as far as is known."""
        return {rank for lease in self.silent_s for rank in self.leases.get(lease, ())}

    def ranks_armed(self, number: int) -> set[int]:
        """Ranks that promised to wait for the decision of plan `number`."""
        return {rank for ack in self.acks.get(number, {}).values() for rank in ack.ranks}

    def steps_applied(self, number: int) -> dict[int, int]:
        """Step by rank: the first step that was run with the values of plan `number`."""
        return {
            rank: step for receipt in self.receipts.get(number, {}).values() for rank, step in receipt.steps.items()
        }

    def ended(self) -> bool:
        """True when every rank of the view ended cleanly."""
        return self.view is not None and not self.ranks_active()

    # -- checkpoints and commands ----------------------------------------------------------------------------

    @property
    def directive(self) -> Directive:
        """What the ranks do besides training, as agreed."""
        return self.agreed.directive if self.agreed is not None else Directive()

    def save_under_way(self) -> Saving | None:
        """The checkpoint that is being written, unless the leader that announced it has been replaced."""
        saving, leader = self.saving, self.leader
        return saving if saving is not None and leader is not None and saving.token == leader.token else None

    def failed_save(self, step: int | None = None, since: int | None = None) -> FailedSave | None:
        """The save that failed last, unless a later one, or one after the revision `since`, was committed. With `step`,
        only a save of that step."""
        saves = self.failed_saves.saves if self.failed_saves is not None else ()
        if since is None:
            newest = self.saved.get(self.latest.id) if self.latest is not None else None
            since = newest.revision if newest is not None else 0
        if not saves or self.failed_revision <= since or step not in (None, saves[-1].step):
            return None
        return saves[-1]

    def commands_by_age(self) -> list[PendingCommand]:
        return sorted(self.commands.values(), key=lambda pending: (pending.revision, pending.id))

    # -- plans -----------------------------------------------------------------------------------------------

    @property
    def newest_plan(self) -> Plan | None:
        return self.plans[max(self.plans)] if self.plans else None

    def open_plan(self) -> Plan | None:
        """The plan that is not decided yet; there is at most one."""
        plan = self.newest_plan
        return plan if plan is not None and plan.number not in self.decisions else None


def _keep(into: dict[K, V], key: K, record: V | None) -> None:
    if record is not None:
        into[key] = record
