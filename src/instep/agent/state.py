"""The state of a run, which every agent watches: view, agreed values, newest plan and decision, leader."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from instep.etcd import Client, Event, KeyValue
from instep.protocol.barriers import Released
from instep.protocol.keys import Keys, last_part
from instep.protocol.records import (
    Agreed,
    Decision,
    Entered,
    Epoch,
    Forming,
    Leader,
    Plan,
    Pointer,
    Refused,
    Rejected,
    Release,
    Resume,
    Saving,
    View,
    WorkerId,
)
from instep.recipes.informer import Informer


class RunState:
    """The records of `state/`. Only the newest plan is held; older ones are history, in etcd.

    `on_change(events)` runs after each batch, when the attributes include it.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        on_change: Callable[[tuple[Event, ...]], None],
        on_reset: Callable[[], None] = lambda: None,
    ) -> None:
        self._keys = keys
        self._on_change = on_change
        self.informer = Informer(client, keys.state, self._take, on_reset=self._reset, contradicts=self._contradicts)
        self._on_reset = on_reset
        self._clear()

    def _clear(self) -> None:
        """Resets everything: nothing is known yet, or etcd holds another history."""
        self.view: View | None = None
        self.view_revision = 0
        self.agreed: Agreed | None = None
        self.agreed_revision = 0
        self.leader: Leader | None = None
        self.epoch: Epoch | None = None
        self.epoch_revision = 0
        self.entered: Entered | None = None
        self.plan: Plan | None = None
        self.plan_revision = 0
        """The create revision of the newest plan; its answers have higher ones."""
        self.decision: Decision | None = None
        self.forming: Forming | None = None
        self.rejected: dict[str, Rejected] = {}
        self.refused: dict[WorkerId, Refused] = {}
        """One record may cover many workers."""
        self.released: dict[str, Released] = {}
        """The last release of each barrier."""
        self.declined: dict[str, int] = {}
        """By command id: the revision of the record."""
        self.saving: Saving | None = None
        self.saved: Pointer | None = None
        self.resume: Resume | None = None
        self.resume_revision = 0

    def __repr__(self) -> str:
        view = self.view.number if self.view else 0
        return f"RunState(view {view}, plan {self.plan.number if self.plan else 0}, {self.informer!r})"

    @property
    def paused_at(self) -> int | None:
        """The step before which the run is paused, if it is."""
        return self.agreed.directive.paused_at if self.agreed is not None else None

    def _contradicts(self, found: Mapping[str, KeyValue]) -> str | None:
        """Whether the newest plan is missing in a listing: plan numbers only rise."""
        key = self._keys.plan(self.plan.number) if self.plan is not None else None
        return None if key is None or key in found else f"{key} no longer exists"

    def _reset(self) -> None:
        self._clear()
        self._on_reset()

    def _take(self, events: tuple[Event, ...]) -> None:
        for event in events:
            self._take_one(event)
        self._on_change(events)

    def _take_one(self, event: Event) -> None:
        keys, key = self._keys, event.kv.key
        value = event.kv.value if event.kind == "put" else None
        if key == keys.view:
            self.view = View.decode_or_none(value)
            self.view_revision = event.kv.mod_revision if value is not None else 0
        elif key == keys.agreed:
            self.agreed = Agreed.decode_or_none(value)
            self.agreed_revision = event.kv.mod_revision if value is not None else 0
        elif key == keys.leader:
            self.leader = Leader.decode_or_none(value) or self.leader  # no agent deletes it, or writes another thing
        elif key == keys.epoch:
            self.epoch = Epoch.decode_or_none(value)
            self.epoch_revision = event.kv.mod_revision if value is not None else 0
        elif key == keys.entered:
            self.entered = Entered.decode_or_none(value)
        elif key == keys.forming:
            self.forming = Forming.decode_or_none(value)
        elif key in (keys.saving, keys.saved, keys.resume):
            self._take_checkpoint(key, value, event.kv.mod_revision)
        elif key.startswith(keys.plans):
            self._take_plan(key, value, event.kv)
        elif key.startswith(keys.rejected):
            _hold(self.rejected, last_part(key), Rejected.decode_or_none(value))
        elif key.startswith(keys.refused):
            self._take_refused(last_part(key), Refused.decode_or_none(value))
        elif key.startswith(keys.barriers):
            self.released.pop(last_part(key), None)
            release = Release.decode_or_none(value)
            if release is not None:
                self.released[last_part(key)] = Released(release, event.kv.mod_revision)
        elif key.startswith(keys.declined):
            self.declined.pop(last_part(key), None)
            if value is not None:
                self.declined[last_part(key)] = event.kv.mod_revision

    def _take_refused(self, name: str, record: Refused | None) -> None:
        for worker in [other for other, held in self.refused.items() if str(held.worker) == name]:
            del self.refused[worker]
        if record is not None and str(record.worker) == name:
            self.refused |= dict.fromkeys(record.workers(), record)

    def _take_checkpoint(self, key: str, value: bytes | None, revision: int) -> None:
        if key == self._keys.saving:
            self.saving = Saving.decode_or_none(value)
        elif key == self._keys.saved:
            self.saved = Pointer.decode_or_none(value)
        else:
            # 0 once it is deleted, as a transaction compares it.
            self.resume, self.resume_revision = Resume.decode_or_none(value), revision if value is not None else 0

    def _take_plan(self, key: str, value: bytes | None, item: KeyValue) -> None:
        self.informer.forget(key)
        newest = self.plan.number if self.plan else 0
        if key.endswith("/decision"):
            decision = Decision.decode_or_none(value)
            if decision is not None and key == self._keys.decision(newest):
                self.decision = decision
            return
        plan = Plan.decode_or_none(value)
        if plan is not None and plan.number > newest:
            self.plan, self.plan_revision, self.decision = plan, item.create_revision, None
        elif value is None and key == self._keys.plan(newest) and self.decision is not None:
            self.plan, self.plan_revision, self.decision = None, 0, None  # deleted by hand: it binds the next no more


def _hold(held: dict[str, Rejected], name: str, record: Rejected | None) -> None:
    if record is None:
        held.pop(name, None)
    else:
        held[name] = record
