"""The run's registry of checkpoints as etcd's history tells it, against its rules. Pure: events in, problems out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from instep.coordination.keys import Keys
from instep.coordination.records import Leader, Manifest, Pointer, View
from instep.etcd import Event, KeyValue


@dataclass(frozen=True, slots=True)
class Start:
    """What a view began with: the checkpoint that it names, and the newest one at that revision."""

    fresh: bool
    names: str | None
    newest: str | None


class Registry:
    """Fed with all events of the run in order. `problems` says what was against the rules:

    a commit is made with the token of the candidate in front, in one revision with the pointer; no step is committed
    twice, nor one after a later one (these runs are never taken back); what was committed stays, until `keep` newer
    ones stand; a fresh view starts from the newest.
    """

    def __init__(self, keys: Keys, *, keep: int | None) -> None:
        self.problems: list[str] = []
        self.committed: dict[str, Manifest] = {}
        """All that ever were, in order."""
        self.standing: dict[str, Manifest] = {}
        self.newest: str | None = None
        self.views: dict[int, Start] = {}
        self.leader: Leader | None = None
        self._keys = keys
        self._keep = keep
        self._candidates: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Registry({len(self.committed)} commits, newest {self.newest}, {len(self.problems)} problems)"

    def feed(self, events: Iterable[Event]) -> None:
        """Whole revisions, one or more."""
        revision: list[Event] = []
        for event in events:
            if revision and event.kv.mod_revision != revision[0].kv.mod_revision:
                self._hear(revision)
                revision = []
            revision.append(event)
        if revision:
            self._hear(revision)

    def _hear(self, events: Sequence[Event]) -> None:
        """A txn's guards speak of what was before it, so the candidates change after the rest was looked at."""
        keys = self._keys
        written = {event.kv.key: event.kv for event in events if event.kind == "put"}
        for key, item in written.items():
            if key.startswith(keys.checkpoints) and key != keys.latest:
                self._commit(item, written)
            elif key == keys.view:
                self._view(View.decode(item.value))
            elif key == keys.leader:
                self.leader = Leader.decode(item.value)
        if keys.latest in written and not any(self._is_manifest(key) for key in written):
            self._wrong(written[keys.latest], "the pointer was moved without a commit")
        for event in events:
            if event.kind == "delete":
                self._gone(event.kv)
            elif self._is_candidate(event.kv.key):
                self._candidates[event.kv.key] = event.kv.create_revision

    def _commit(self, item: KeyValue, written: dict[str, KeyValue]) -> None:
        keys = self._keys
        manifest = Manifest.decode(item.value)
        pointers = [Pointer.decode(written[key].value).id for key in (keys.latest, keys.saved) if key in written]
        if item.key != keys.checkpoint(manifest.id) or manifest.id != f"{manifest.step}-{manifest.token}":
            self._wrong(item, f"the manifest names itself {manifest.id}")
        if pointers != [manifest.id] * 2:
            self._wrong(item, f"committed without its pointers, which name {pointers}")
        if manifest.token != min(self._candidates.values(), default=0):
            self._wrong(item, f"committed with a token that does not lead: {sorted(self._candidates.values())} stand")
        last = max((before.step for before in self.committed.values()), default=-1)
        if manifest.step <= last:
            self._wrong(item, f"committed after step {last}")
        self.committed[manifest.id] = self.standing[manifest.id] = manifest
        self.newest = manifest.id

    def _view(self, view: View) -> None:
        start = self.views[view.number] = Start(view.fresh, view.start.checkpoint, self.newest)
        if start.fresh and start.names != start.newest:
            self.problems.append(f"view {view.number} starts from {start.names} and {start.newest} is the newest")

    def _gone(self, item: KeyValue) -> None:
        self._candidates.pop(item.key, None)
        if item.key == self._keys.latest:
            self._wrong(item, "the pointer was deleted")
        elif self._is_manifest(item.key):
            checkpoint_id = item.key.removeprefix(self._keys.checkpoints)
            newer = list(self.standing)[list(self.standing).index(checkpoint_id) + 1 :]
            if self._keep is None or len(newer) < self._keep:
                self._wrong(item, f"forgotten with {len(newer)} newer ones")
            del self.standing[checkpoint_id]

    def _is_manifest(self, key: str) -> bool:
        return key.startswith(self._keys.checkpoints) and key != self._keys.latest

    def _is_candidate(self, key: str) -> bool:
        """Not what says of one that it was given up."""
        return key.startswith(self._keys.election) and "/" not in key.removeprefix(self._keys.election)

    def _wrong(self, item: KeyValue, what: str) -> None:
        name = item.key.removeprefix(self._keys.checkpoints)
        self.problems.append(f"revision {item.mod_revision}, {name}: {what}")
