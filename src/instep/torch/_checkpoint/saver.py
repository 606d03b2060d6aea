"""What plain and sharded saves have in common: they open a slot, write parts to files, and load them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from instep.worker.manifest import Owners
from instep.worker.run import Run
from instep.worker.slot import Layout, Slot

from .background_save import BackgroundSave, abandon_on_error, as_checkpoint_error
from .cleanup import CheckpointCleanup
from .fit import mismatch
from .parts import Part, file_of, load_part, read_part, write_label, write_part

MAX_ATTEMPTS: Final = 3


@dataclass(kw_only=True, eq=False, repr=False)
class BaseSaver:
    """Saves and loads `parts` for one Checkpointer. `PlainSaver` and `ShardedSaver` decide which rank writes what."""

    layout: ClassVar[Layout]

    run: Run[Any]
    parts: Mapping[str, Part]
    folder: Path
    cleanup: CheckpointCleanup
    background: bool
    weights_only: bool
    owners: Owners

    def __post_init__(self) -> None:
        self.registry = self.run.checkpoints
        self.whole = self.parts  # those that one rank writes, each as one file
        self.background_save = BackgroundSave(self.cleanup.after_commit)

    def mismatch(self, folder: Path, listed: Collection[str]) -> str | None:
        """Why this rank cannot load the checkpoint in `folder`, with the files in `listed`; None if it can. Reads no
        tensors. Raises CheckpointError for a part that cannot be read."""
        for name, part in self.whole.items():
            if file_of(name) not in listed:
                return f"{file_of(name)} is not in the list of its files"
            problem = mismatch(part, self._read(folder, name, peek=True))
            if problem is not None:
                return f"its {name} does not fit this script's: {problem}"
        return None

    def load(self, folder: Path) -> None:
        """Loads one part after the other, so at most one is in memory twice."""
        for name, part in self.whole.items():
            load_part(name, part, self._read(folder, name))

    def _read(self, folder: Path, name: str, *, peek: bool = False) -> Any:
        return read_part(folder, name, self.owners, weights_only=self.weights_only, peek=peek)

    def _states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.whole.items()}

    def _open(self, step: int) -> Slot:
        """Raises Fenced and CheckpointError."""
        slot = self.registry.open(step, self.folder, self.layout)
        self.cleanup.note_open(slot)
        with abandon_on_error(slot), as_checkpoint_error(slot):
            write_label(slot.path, run=self.run.name, layout=self.layout, names=tuple(self.parts))
        return slot

    def _write(self, slot: Slot, states: Mapping[str, Any]) -> None:
        with as_checkpoint_error(slot):
            for name, state in states.items():
                write_part(slot.path, name, state)
