"""A rank of the run that is drilled: it trains nothing, waits for the others in every step, and saves at some steps.

Its state is a function of the step (`content`), so whoever loads a checkpoint can tell whether it is that of its step.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol, Self

from chaos.board import Board, Word

import instep
from drills import content
from drills.records import Records
from instep.worker.manifest import verify_manifest
from instep.worker.saved import Manifest

RUN: Final = "drill"
JOIN_S: Final = 60.0
RESTORE_S: Final = 60.0
POLL_S: Final = 0.001


class Hyper(instep.Hyperparameters):
    lr: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a rank is told at its start. `background` is for a saver that can write beside the training."""

    seed: int
    board: str
    records: str
    folder: str
    step_s: float
    background: bool = False

    @property
    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(**json.loads(text))


class Saver(Protocol):
    """Saves and restores `content`."""

    def restore(self) -> tuple[str | None, int, str]:
        """The id of the checkpoint that was loaded, if any, the step to run next, and the sum of what is held now."""

    def save(self, step: int) -> bool:
        """Whether a checkpoint of this step is known to be committed, as far as this rank can tell."""


class OwnSaver:
    """With `run.checkpoint`: the rank that leads writes, the others go on."""

    def __init__(self, run: instep.Run[Any], orders: Orders, records: Records) -> None:
        self._run = run
        self._orders = orders
        self._records = records

    def restore(self) -> tuple[str | None, int, str]:
        registry = self._run.checkpoints
        manifest = registry.resume(_problem, RESTORE_S)
        if manifest is None:
            return None, 0, ""
        with registry.reading(manifest):
            return manifest.id, manifest.step + 1, content.digest(content.read(Path(manifest.path)))

    def save(self, step: int) -> bool:
        orders = self._orders
        with self._run.checkpoint(step, folder=orders.folder) as slot:
            if slot is None:
                return False
            self._records.write("opened", step=step, id=slot.id)
            content.write_slowly(slot.path, content.content(orders.seed, step), content.length_s(orders.seed, step))
        return slot.state == "committed"


class Warnings(logging.Handler):
    """What the run's operator would read."""

    def __init__(self, records: Records) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.write("warned", text=record.getMessage())


def main(arguments: Sequence[str], make: Callable[[instep.Run[Any], Orders, Records], Saver] = OwnSaver) -> int:
    orders = Orders.of(arguments[0])
    records = Records(Path(orders.records))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("instep").addHandler(Warnings(records))
    board = Board(Path(orders.board), int(os.environ["WORLD_SIZE"]))
    try:
        with instep.join(RUN, Hyper, timeout_s=JOIN_S) as run:
            records.write("joined", view=run.view)
            train(run, make(run, orders, records), board, orders, records)
        records.write("done")
    except instep.InstepError as error:
        records.write("error", kind=type(error).__name__, text=str(error))
        return error.exit_code
    return 0


def train(run: instep.Run[Any], saver: Saver, board: Board, orders: Orders, records: Records) -> None:
    checkpoint_id, start, held = saver.restore()
    records.write("restored", id=checkpoint_id, next=start, digest=held)
    for step in count(start):
        if step > board.last_step:
            return
        run.boundary(step)
        if run.stopped is not None:
            records.write("stopped", step=step)
            return
        board.set(run.rank, Word.PASSED, step)
        time.sleep(orders.step_s)
        reduce_all(board, run.rank, step)
        if content.is_saved(orders.seed, step) or run.checkpoint_requested:
            save(saver, step, records)


def save(saver: Saver, step: int, records: Records) -> None:
    try:
        records.write("saved", step=step, known=saver.save(step))
    except instep.Fenced as fenced:
        records.write("fenced", step=step, token=fenced.token, text=str(fenced))
    except instep.CheckpointError as error:
        records.write("failed", step=step, text=str(error))


def reduce_all(board: Board, rank: int, step: int) -> None:
    """Where a rank that is dead holds up all others, for good."""
    board.set(rank, Word.ARRIVED, step)
    while board.lowest_arrived() < step:
        time.sleep(POLL_S)


def _problem(manifest: Manifest) -> str | None:
    return verify_manifest(Path(manifest.path), manifest.digest)
