"""Checks of the whole history of etcd, and of what workers do because of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from model_etcd import ModelEtcd

from instep.etcd import KeyValue
from instep.protocol.keys import Keys
from instep.protocol.records import Attempts, Decision, Left, Manifest, Plan, Pointer, Release, View
from instep.wire.messages import Offer

BARRIER = "meeting"


class HistoryChecks:
    """Raises AssertionError for a record that must not be. After etcd was put back (`went_back`), only decisions are
    followed: numbers are given again then."""

    def __init__(self, store: ModelEtcd, keys: Keys) -> None:
        self.went_back = 0
        self.committed: set[int] = set()
        """All plans that were ever committed, in any history."""
        self.restored: dict[int, int] = {}
        """The step of the checkpoint that a committed plan restores."""
        self.abandoned: set[str] = set()
        """Checkpoints of a training that a restore has discarded."""
        self.views: dict[int, View] = {}
        self.arrived: set[str] = set()
        """Incarnations that have called the barrier since its last release."""
        self.released: dict[int, frozenset[str]] = {}
        """The incarnations that had called it, by the number of the release."""
        self.answers: dict[tuple[int, str], dict[int, bool]] = defaultdict(dict)
        """Whether each rank found a checkpoint good, by view and checkpoint."""
        self._chosen: dict[int, str | None] = {}
        self._store = store
        self._keys = keys
        self._checked = 0

    def go_back(self) -> None:
        self.went_back += 1
        self._checked = len(self._store.history)

    # -- what etcd holds --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """A decision never changes; plans are created once, and one at a time."""
        keys = self._keys
        for batch in self._store.history[self._checked :]:
            self._checked += 1
            written = {event.kv.key: event.kv for event in batch.events if event.kind == "put"}
            for key, item in written.items():
                if key.startswith(keys.plans):
                    self._check_plan(item, batch.revision)
            if self.went_back:
                continue
            before = self._store.at(batch.revision - 1)
            if keys.attempts in written:
                self._check_attempts(before, written)
            if keys.view in written:
                view = View.decode(written[keys.view].value)
                self.views[view.number] = view
            if keys.barrier(BARRIER) in written:
                self._check_release(before, Release.decode(written[keys.barrier(BARRIER)].value))
            for key, item in written.items():
                if key.startswith(keys.checkpoints) and key != keys.latest:
                    self._note_abandoned(Manifest.decode(item.value))

    def _check_plan(self, item: KeyValue, revision: int) -> None:
        keys = self._keys
        assert item.version == 1, f"{item.key} was written again"
        number = int(item.key.removeprefix(keys.plans).split("/")[0])
        if item.key.endswith("/decision"):
            if Decision.decode(item.value).commit:
                self.committed.add(number)
                self._check_restore(number, revision)
        elif number > 1 and Plan.decode(item.value).restored is None and not self.went_back:
            before = self._store.get(keys.decision(number - 1))
            decided = before is not None and before.mod_revision < revision
            assert decided, f"plan {number} came too early"

    def _check_restore(self, number: int, revision: int) -> None:
        """A restore goes to a checkpoint that exists, and a restart resumes from it."""
        now = self._store.at(revision)
        plan = Plan.decode_or_none(_value(now, self._keys.plan(number)))
        if plan is None or plan.checkpoint is None or self.went_back:
            return
        target = plan.checkpoint
        assert self._keys.checkpoint(target.id) in now, f"plan {number} restores {target.id}, which was forgotten"
        pointer = Pointer.decode_or_none(_value(now, self._keys.latest)) or Pointer(id="nothing", step=0, token=0)
        assert pointer.id == target.id, f"plan {number} restores {target.id}, and a restart resumes from {pointer.id}"
        self.restored[number] = target.step
        paths = {key for key in now if key.startswith(self._keys.checkpoints)} - {self._keys.latest}
        registered = {path.removeprefix(self._keys.checkpoints) for path in paths}
        self.abandoned = (self.abandoned | registered) - {target.id, *target.lineage}

    def _note_abandoned(self, manifest: Manifest) -> None:
        """Whether it was saved before the last restore, though it is committed after that. An id may be used again."""
        if manifest.plan < max(self.restored, default=0):
            self.abandoned.add(manifest.id)
        else:
            self.abandoned.discard(manifest.id)

    def _check_attempts(self, before: Mapping[str, KeyValue], written: Mapping[str, KeyValue]) -> None:
        """A view that lost a rank counts as one failure, the one that ended it; a reset count remains reset."""
        keys = self._keys
        was = Attempts.decode_or_none(_value(before, keys.attempts)) or Attempts()
        counted = Attempts.decode(written[keys.attempts].value)
        if counted.total in (0, was.total):
            return
        assert counted.total == was.total + 1, f"{counted.total} failures are counted after {was.total}"
        lost, failure = View.decode(before[keys.view].value), counted.failures[-1]
        assert failure.view == lost.number, f"a failure of view {failure.view} is counted for view {lost.number}"
        formed = View.decode(written[keys.view].value)
        gone = lost.workers() - formed.workers()
        assert failure.rank in {worker.rank for worker in gone}, f"{failure} is counted, and that worker is in the view"

    def _check_release(self, before: Mapping[str, KeyValue], release: Release) -> None:
        """All ranks of the view that have not left have called the barrier."""
        view = View.decode(before[self._keys.view].value)
        assert release.view == view.number
        missing = set(view.incarnations().values()) - self.arrived - self._left(before)
        assert not missing, f"the barrier was released before {missing} had called it"
        self.released[release.number] = frozenset(self.arrived)
        self.arrived.clear()

    def _left(self, found: Mapping[str, KeyValue]) -> set[str]:
        view = View.decode(found[self._keys.view].value)
        by_rank, gone = view.incarnations(), set()
        for key, item in found.items():
            left = Left.decode_or_none(item.value) if key.startswith(self._keys.left) else None
            if left is not None and left.view == view.number:
                gone |= {by_rank[rank] for rank in left.ranks}
        return gone

    # -- what workers do --------------------------------------------------------------------------------------------

    def check_passed(self, incarnation: str, number: int) -> None:
        """A worker passes a barrier on a release that counts it."""
        self.check()
        assert incarnation in self.released.get(number, ()), f"{incarnation} passed on account of another worker"

    def check_resumed(self, offer: Offer) -> None:
        """All ranks of a view resume from one checkpoint that each of them has verified, and from none that the run
        was taken back from."""
        self.check()
        view, checkpoint_id = self.views.get(offer.view), offer.id
        if view is None or self.went_back:
            return
        assert checkpoint_id not in self.abandoned, f"checkpoint {checkpoint_id} is resumed, which was abandoned"
        if not view.start.vote:
            return
        chosen = self._chosen.setdefault(view.number, checkpoint_id)
        assert chosen == checkpoint_id, f"view {view.number} resumes from {chosen} and from {checkpoint_id}"
        for refused in offer.reasons:
            bad = False in self.answers[view.number, refused].values()
            assert bad or self._store.get(self._keys.checkpoint(refused)) is None, f"no rank had refused {refused}"
        if checkpoint_id is not None:
            good = {rank for rank, is_good in self.answers[view.number, checkpoint_id].items() if is_good}
            missing = set(view.incarnations()) - good
            assert not missing, f"checkpoint {checkpoint_id} is resumed, and not verified by {missing}"


def _value(found: Mapping[str, KeyValue], key: str) -> bytes | None:
    return found[key].value if key in found else None
