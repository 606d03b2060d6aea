"""The checkpoints that a run has committed, from the history of its keys. Pure but for reading their files.

What is committed has an id of its own, was written under the token of who led, and replaces the pointer with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instep.coordination.keys import Keys
from instep.coordination.records import Leader, Manifest, Pointer
from instep.etcd import Event
from instep.worker.manifest import verify_manifest

MAX_PROBLEMS = 50


class RegistryHistory:
    """Fed with all events in order; `problems` says what was against the rules, the first fifty of them."""

    def __init__(self, keys: Keys) -> None:
        self.problems: list[str] = []
        self.committed: dict[str, Manifest] = {}
        """All that were ever committed, by id."""
        self.standing: dict[str, Manifest] = {}
        self.pointer: str | None = None
        self._keys = keys
        self._led: dict[int, str] = {}
        self._candidates: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"RegistryHistory({len(self.committed)} committed, {len(self.standing)} standing, {self.pointer})"

    def revision(self, number: int, events: Sequence[Event]) -> None:
        """All events of one transaction. Its guards speak of the candidates that stood before it."""
        candidates = dict(self._candidates)
        fresh: list[Manifest] = []
        touched = False
        for event in events:
            path = event.kv.key.removeprefix(self._keys.root)
            if path == event.kv.key:
                continue
            if path.startswith("election/") and not path.startswith("election/.gone/"):
                _stand(event, candidates)
            elif path == "state/leader" and event.kind == "put":
                leader = Leader.decode(event.kv.value)
                self._led[leader.token] = leader.candidate
            elif path.startswith("checkpoints/"):
                touched = True
                fresh += self._changed(path.removeprefix("checkpoints/"), event, number)
        if touched:
            self._check_pointer(fresh, number)
        self._candidates = candidates

    def _changed(self, name: str, event: Event, number: int) -> list[Manifest]:
        if name == "latest":
            self.pointer = Pointer.decode(event.kv.value).id if event.kind == "put" else None
            return []
        if event.kind != "put":
            self.standing.pop(name, None)
            return []
        manifest = Manifest.decode(event.kv.value)
        if manifest.id != name or manifest.id != f"{manifest.step}-{manifest.token}":
            self._problem(f"{event.kv.key} holds checkpoint {manifest.id} of step {manifest.step}")
        if name in self.committed:
            self._problem(f"checkpoint {name} was committed again at revision {number}")
        candidate = self._led.get(manifest.token)
        if candidate is None or self._candidates.get(candidate) != manifest.token:
            self._problem(f"checkpoint {name} was committed at revision {number}, and nobody led with its token")
        self.committed[name] = self.standing[name] = manifest
        return [manifest]

    def _check_pointer(self, fresh: list[Manifest], number: int) -> None:
        if (self.pointer is not None or self.committed) and self.pointer not in self.standing:
            self._problem(f"the pointer names {self.pointer} at revision {number}, which does not stand")
        for manifest in fresh:
            if manifest.id != self.pointer:
                self._problem(f"checkpoint {manifest.id} was committed at revision {number} without the pointer")

    def _problem(self, sentence: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(sentence)


def broken_files(standing: Sequence[Manifest]) -> list[str]:
    """A sentence for each listed checkpoint whose files are not as they were saved."""
    found = [(manifest.id, verify_manifest(Path(manifest.path), manifest.digest)) for manifest in standing]
    return [f"checkpoint {name} is listed, and {problem}" for name, problem in found if problem is not None]


def _stand(event: Event, candidates: dict[str, int]) -> None:
    if event.kind == "put":
        candidates[event.kv.key] = event.kv.create_revision
    else:
        candidates.pop(event.kv.key, None)
