"""How a rank under chaos saves: a tiny checkpoint where it leads, and no more than the newest few are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import instep

KEPT: Final = 3
FILES: Final = ("model.txt", "optimizer.txt")


def save(run: instep.Run[Any], step: int, folder: Path) -> dict[str, object]:
    """What came of it, for the rank's records. Nothing that a checkpoint can meet ends the training."""
    checkpoint_id = None
    try:
        with run.checkpoint(step, folder=folder) as slot:
            if slot is None:
                return {"outcome": "does not lead"}
            checkpoint_id = slot.id
            for name in FILES:
                (slot.path / name).write_text(f"{name} {slot.id} {sorted(run.config)}\n" * 50)
    except instep.Fenced:
        return {"outcome": "fenced", "id": checkpoint_id}
    except instep.CheckpointError as error:
        return {"outcome": "failed", "id": checkpoint_id, "text": str(error)}
    return {"outcome": slot.state, "id": checkpoint_id, "forgotten": _forget(run)}


def _forget(run: instep.Run[Any]) -> list[str]:
    """Ids of those that were taken off the registry and whose files are gone."""
    try:
        old = run.checkpoints.list()[KEPT:]
        forgotten = run.checkpoints.forget([manifest.id for manifest in old])
    except instep.EtcdUnavailable:
        return []
    for manifest in old:
        if manifest.id in forgotten:
            shutil.rmtree(manifest.path, ignore_errors=True)
    return list(forgotten)
