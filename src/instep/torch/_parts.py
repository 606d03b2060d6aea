"""The parts of a training that a checkpoint holds: what is kept of each, and its file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast, runtime_checkable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.serialization import get_unsafe_globals_in_checkpoint

from instep.errors import CheckpointError
from instep.worker.files import Owners, open_file, read_file

log = logging.getLogger("instep")

LABEL: Final = "instep-parts.json"
"""Says whose attempt a directory is: the first file that is written into it."""
MAX_LABEL_BYTES: Final = 1024 * 1024


@runtime_checkable
class Part(Protocol):
    """Anything with a state: a model, an optimizer, a scheduler, a gradient scaler, a sampler."""

    def state_dict(self) -> Any:
        """What is to be kept."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take it back."""


def checked_parts(parts: Mapping[str, Any], *, sharded: bool) -> dict[str, Part]:
    """The parts, wrappers of models taken off. CheckpointError for what cannot be saved, with the cure."""
    if not parts:
        raise CheckpointError("a Checkpointer needs parts to save: Checkpointer(run, folder, model=..., optimizer=...)")
    for name, part in parts.items():
        if not re.fullmatch(r"[A-Za-z_]\w{0,63}", name, re.ASCII):
            raise CheckpointError(f"{name!r} cannot name a part: use letters, digits and _, as in model=...")
        if not isinstance(part, Part):
            raise CheckpointError(f"{name} is a {type(part).__name__}: it needs state_dict() and load_state_dict()")
        problem = None if sharded else _why_not_plain(part)
        if problem is not None:
            raise CheckpointError(f"{name} {problem}")
    return {name: unwrapped(part) if isinstance(part, nn.Module) else part for name, part in parts.items()}


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's module below DistributedDataParallel and torch.compile: its names hold for every world size."""
    while True:
        inner = module.module if isinstance(module, DistributedDataParallel) else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def label(folder: Path, *, run: str, layout: str, names: tuple[str, ...]) -> None:
    """Says in a new directory what will be in it. Raises OSError."""
    text = json.dumps(
        {"instep_checkpoint": 1, "run": run, "layout": layout, "parts": names, "torch": torch.__version__}
    )
    (folder / LABEL).write_text(text, encoding="utf-8")


def label_of(folder: Path, owners: Owners) -> dict[str, Any] | None:
    """What `label` wrote there; None where it did not."""
    try:
        document = json.loads(read_file(folder, LABEL, owners, MAX_LABEL_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def write_part(folder: Path, name: str, state: Any) -> None:
    """One file, flushed to the system but not yet to the disk. Raises OSError when the disk takes no more."""
    path = folder / file_of(name)
    with path.open("xb") as file:
        sink = _Sink(file)
        try:
            torch.save(state, cast(BinaryIO, sink))
        except RuntimeError:
            if sink.failure is not None:
                raise sink.failure from None
            raise
    unsafe = _unsafe_in(path)
    if unsafe:
        log.error("the state of %s holds %s: %s", name, unsafe, _HOW_TO_TRUST)


def read_part(folder: Path, name: str, owners: Owners, *, weights_only: bool, peek: bool = False) -> Any:
    """What `write_part` wrote, on the CPU. CheckpointError when it cannot be read.

    `peek`: the tensors are read from the disk only when their values are looked at.
    """
    path = folder / file_of(name)
    try:
        with open_file(folder, file_of(name), owners) as file:
            opened = f"/proc/self/fd/{file.fileno()}"  # the file that was checked, whatever its name leads to by now
            return torch.load(opened, map_location="cpu", weights_only=weights_only, mmap=peek)
    except FileNotFoundError:
        there = ", ".join(sorted(file.stem for file in folder.glob("*.pt"))) or "none"
        raise CheckpointError(
            f"the checkpoint in {folder} has no part {name!r}, it has {there}: leave it out of the Checkpointer "
            "until the run has gone on from this checkpoint"
        ) from None
    except pickle.UnpicklingError as error:
        unsafe = _unsafe_in(path) if weights_only else ""
        problem = f"holds {unsafe}: {_HOW_TO_TRUST}" if unsafe else f"cannot be read: {error}"
        raise CheckpointError(f"{path} {problem}") from error
    except (OSError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def give_back(name: str, part: Part, state: Any) -> None:
    """CheckpointError when the part does not take it: it is another model than the one that was saved."""
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint's {name} does not fit this script's: {error}") from error


class _Sink:
    """A file that remembers what the disk has refused: of that torch says only that it did not expect a position."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _unsafe_in(path: Path) -> str:
    """Names of classes and functions in the file that torch does not load by itself. Reads no tensors."""
    with contextlib.suppress(Exception):  # a file that nobody can read has no names for us
        return ", ".join(sorted(get_unsafe_globals_in_checkpoint(os.fspath(path))))
    return ""


def file_of(name: str) -> str:
    """The file of a part, in the checkpoint's directory."""
    return f"{name}.pt"


def _why_not_plain(part: Part) -> str | None:
    if isinstance(part, nn.Module):
        if any(hasattr(parameter, "full_tensor") for parameter in part.parameters()):
            return "is spread over the ranks: pass sharded=True"
        if any(type(module).__name__ == "FullyShardedDataParallel" for module in part.modules()):
            return "is spread over the ranks by FullyShardedDataParallel: pass sharded=True"
    if isinstance(part, Optimizer) and hasattr(part, "consolidate_state_dict"):
        return (
            f"is a {type(part).__name__}, whose state is spread over the ranks: consolidate it yourself "
            "and save it with run.checkpoint(step)"
        )
    return None


_HOW_TO_TRUST: Final = (
    "torch loads that only after torch.serialization.add_safe_globals([...]) for it, or with weights_only=False given "
    "to the Checkpointer, which runs code that the file brings"
)
