"""How the ranks save with `run.checkpoint`: the leader writes, the others wait for it in the step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import instep
from chaos import content
from instep.wire.documents import Manifest
from instep.worker.manifest import verify_manifest

if TYPE_CHECKING:
    from chaos.harness.records import RecordWriter
    from chaos.trainer import TrainerSpec

KEPT: Final = 3
FILES: Final = ("model.txt", "optimizer.txt")


class Saver(Protocol):
    """One per rank. `restores`: whether it restores a checkpoint before the first step."""

    restores: bool

    def restore(self) -> tuple[str | None, int, str]:
        """The id of the checkpoint that was loaded, if any, the step to run next, and the digest of its content."""

    def wants(self, step: int) -> bool:
        """Whether it saves that step without a request."""

    def save(self, step: int) -> dict[str, object]:
        """The outcome, for the records of the rank. Raises Fenced and CheckpointError."""


class TinySaver:
    """Saves a tiny checkpoint when one is requested; keeps the newest few."""

    restores = False

    def __init__(self, run: instep.Run[Any], spec: TrainerSpec, records: RecordWriter) -> None:
        self._run = run
        self._folder = Path(spec.folder)

    def restore(self) -> tuple[str | None, int, str]:
        raise NotImplementedError

    def wants(self, step: int) -> bool:
        return False

    def save(self, step: int) -> dict[str, object]:
        """Catches what a save can raise, because the outcome belongs to the id of the checkpoint."""
        checkpoint_id = None
        try:
            with self._run.checkpoint(step, folder=self._folder) as slot:
                if slot is None:
                    return {"outcome": "does not lead"}
                checkpoint_id = slot.id
                for name in FILES:
                    (slot.path / name).write_text(f"{name} {slot.id} {sorted(self._run.config)}\n" * 50)
        except instep.Fenced:
            return {"outcome": "fenced", "id": checkpoint_id}
        except instep.CheckpointError as error:
            return {"outcome": "failed", "id": checkpoint_id, "text": str(error)}
        return {"outcome": slot.state, "id": checkpoint_id, "forgotten": self._forget()}

    def _forget(self) -> list[str]:
        """Ids of those that were removed from the registry and whose files are deleted."""
        try:
            old = self._run.checkpoints.list()[KEPT:]
            forgotten = self._run.checkpoints.forget([manifest.id for manifest in old])
        except instep.EtcdUnavailable:
            return []
        for manifest in old:
            if manifest.id in forgotten:
                shutil.rmtree(manifest.path, ignore_errors=True)
        return list(forgotten)


class ContentSaver:
    """Saves `content`, a function of the step: a rank that loads a checkpoint can tell whether it is that of its
    step."""

    restores = True

    def __init__(self, run: instep.Run[Any], spec: TrainerSpec, records: RecordWriter) -> None:
        self._run = run
        self._spec = spec
        self._records = records

    def restore(self) -> tuple[str | None, int, str]:
        checkpoints = self._run.checkpoints
        manifest = checkpoints.resume(_problem, self._spec.patience_s)
        if manifest is None:
            return None, 0, ""
        with checkpoints.reading(manifest):
            return manifest.id, manifest.step + 1, content.digest(content.read(Path(manifest.path)))

    def wants(self, step: int) -> bool:
        return content.is_saved(self._spec.seed, step)

    def save(self, step: int) -> dict[str, object]:
        spec = self._spec
        with self._run.checkpoint(step, folder=spec.folder) as slot:
            if slot is None:
                return {"known": False}
            self._records.write("opened", step=step, id=slot.id)
            content.write_slowly(slot.path, content.content(spec.seed, step), content.length_s(spec.seed, step))
        return {"known": slot.state == "committed"}


def _problem(manifest: Manifest) -> str | None:
    return verify_manifest(Path(manifest.path), manifest.digest)
