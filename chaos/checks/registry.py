"""Checks the registry of checkpoints in etcd's history against its rules. Pure except for reading files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.recording import by_revision
from instep.etcd import Event, KeyValue
from instep.protocol.keys import Keys
from instep.protocol.records import Leader, Manifest, Pointer, View
from instep.worker.manifest import verify_manifest

MAX_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class ViewStart:
    """The checkpoint that a view starts from, and the newest one at that revision."""

    fresh: bool
    names: str | None
    newest: str | None


class RegistryHistory:
    """Takes all events of the run in order. `problems` has the first fifty violations of these rules:

    a checkpoint is committed once, under a unique id, with the token of the oldest candidate, which leads, and in
    one revision with its pointers; the pointer moves with a commit only, and names a registered checkpoint; a fresh
    view starts from the newest. With `steps_rise` no step is committed twice, nor one after a later one: for runs that
    are never restored. A checkpoint is forgotten when `keep` newer ones are registered; None: never.
    """

    def __init__(self, keys: Keys, *, steps_rise: bool = False, keep: int | None = 0) -> None:
        self.problems: list[str] = []
        self.committed: dict[str, Manifest] = {}
        """All checkpoints that were ever committed, in order."""
        self.registered: dict[str, Manifest] = {}
        self.newest: str | None = None
        """The checkpoint that the pointer names."""
        self.views: dict[int, ViewStart] = {}
        self.leader: Leader | None = None
        self._keys = keys
        self._steps_rise = steps_rise
        self._keep = keep
        self._led: dict[int, str] = {}
        self._candidates: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"RegistryHistory({len(self.committed)} committed, newest {self.newest}, {len(self.problems)} problems)"

    def feed(self, events: Iterable[Event]) -> None:
        """Whole revisions, one or more."""
        for number, revision in by_revision(events):
            self.revision(number, revision)

    def revision(self, number: int, events: Sequence[Event]) -> None:
        """All events of one transaction. Its comparisons refer to the state before it, so candidates change last."""
        keys = self._keys
        written = {event.kv.key: event.kv for event in events if event.kind == "put"}
        if keys.leader in written:
            self.leader = Leader.decode(written[keys.leader].value)
            self._led[self.leader.token] = self.leader.candidate
        if keys.latest in written:
            self.newest = Pointer.decode(written[keys.latest].value).id
            if not any(self._is_manifest(key) for key in written):
                self._problem(f"the pointer was moved without a commit at revision {number}")
        for key, item in written.items():
            if self._is_manifest(key):
                self._commit(item, written)
            elif key == keys.view:
                self._start_view(View.decode(item.value))
        for event in events:
            if event.kind == "delete":
                self._delete(event.kv)
            elif self._is_candidate(event.kv.key):
                self._candidates[event.kv.key] = event.kv.create_revision

    def _commit(self, item: KeyValue, written: dict[str, KeyValue]) -> None:
        keys, manifest = self._keys, Manifest.decode(item.value)
        name, number = item.key.removeprefix(keys.checkpoints), item.mod_revision
        if manifest.id != name or manifest.id != f"{manifest.step}-{manifest.token}":
            self._problem(f"{item.key} holds checkpoint {manifest.id} of step {manifest.step}")
        if manifest.id in self.committed:
            self._problem(f"checkpoint {name} was committed again at revision {number}")
        candidate = self._led.get(manifest.token)
        leads = candidate is not None and self._candidates.get(candidate) == manifest.token
        if not leads or manifest.token != min(self._candidates.values()):
            candidates = sorted(self._candidates.values())
            self._problem(
                f"checkpoint {name} was committed at revision {number} with a token that does not lead: "
                f"the candidates are {candidates}"
            )
        pointers = [Pointer.decode(written[key].value).id for key in (keys.latest, keys.saved) if key in written]
        if pointers != [manifest.id] * 2:
            self._problem(f"checkpoint {name} was committed at revision {number} without its pointers: {pointers}")
        last = max((before.step for before in self.committed.values()), default=-1)
        if self._steps_rise and manifest.step <= last:
            self._problem(f"checkpoint {name} was committed after step {last}")
        self.committed[manifest.id] = self.registered[manifest.id] = manifest

    def _start_view(self, view: View) -> None:
        start = self.views[view.number] = ViewStart(view.fresh, view.start.checkpoint, self.newest)
        if start.fresh and start.names != start.newest:
            self._problem(f"view {view.number} starts from {start.names} and {start.newest} is the newest")

    def _delete(self, item: KeyValue) -> None:
        self._candidates.pop(item.key, None)
        if item.key == self._keys.latest:
            self.newest = None
            self._problem(f"the pointer was deleted at revision {item.mod_revision}")
        elif self._is_manifest(item.key):
            checkpoint_id = item.key.removeprefix(self._keys.checkpoints)
            if checkpoint_id == self.newest:
                self._problem(f"the pointer names {checkpoint_id}, which was forgotten at revision {item.mod_revision}")
            newer = list(self.registered)[list(self.registered).index(checkpoint_id) + 1 :]
            if self._keep is None or len(newer) < self._keep:
                self._problem(f"checkpoint {checkpoint_id} was forgotten with {len(newer)} newer ones")
            del self.registered[checkpoint_id]

    def _is_manifest(self, key: str) -> bool:
        return key.startswith(self._keys.checkpoints) and key != self._keys.latest

    def _is_candidate(self, key: str) -> bool:
        """False for the record of a candidate that was withdrawn."""
        return key.startswith(self._keys.election) and "/" not in key.removeprefix(self._keys.election)

    def _problem(self, sentence: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(sentence)


def broken_files(manifests: Sequence[Manifest]) -> list[str]:
    """A sentence for each registered checkpoint whose files are not as they were saved."""
    found = [(manifest.id, verify_manifest(Path(manifest.path), manifest.digest)) for manifest in manifests]
    return [f"checkpoint {name} is registered, and {problem}" for name, problem in found if problem is not None]
