"""The parts of a checkpoint: checking them, copying their state, and their files."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.serialization import get_unsafe_globals_in_checkpoint

from instep.errors import CheckpointError
from instep.torch._optim.schedulers import unwrapped_optimizer
from instep.worker.manifest import Owners, open_file, read_file

log = logging.getLogger("instep")

Take = Callable[[Tensor], Tensor]

_KINDS: Final = (LRScheduler, GradScaler)
LABEL: Final = "instep-parts.json"
"""The first file in a new directory: it names the run that the directory belongs to."""
MAX_LABEL_BYTES: Final = 1024 * 1024


@runtime_checkable
class Part(Protocol):
    """An object with a state: a model, an optimizer, a scheduler, a gradient scaler, a sampler."""

    def state_dict(self) -> Any:
        """Returns the state to save."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restores a saved state."""


def checked_parts(parts: Mapping[str, Any], *, sharded: bool) -> dict[str, Part]:
    """The parts, with models unwrapped. Raises CheckpointError, with the fix, for what cannot be saved."""
    if not parts:
        raise CheckpointError("a Checkpointer needs parts to save: Checkpointer(run, folder, model=..., optimizer=...)")
    for name, part in parts.items():
        if not re.fullmatch(r"[A-Za-z_]\w{0,63}", name, re.ASCII):
            raise CheckpointError(f"{name!r} cannot name a part: use letters, digits and _, as in model=...")
        if not isinstance(part, Part):
            raise CheckpointError(f"{name} is a {type(part).__name__}: it needs state_dict() and load_state_dict()")
        problem = None if sharded else _needs_sharded(part)
        if problem is not None:
            raise CheckpointError(f"{name} {problem}")
    return {name: unwrap(part) if isinstance(part, nn.Module) else part for name, part in parts.items()}


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile, whose names do not depend on the world size."""
    while True:
        inner = module.module if isinstance(module, DistributedDataParallel) else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def write_label(folder: Path, *, run: str, layout: str, names: tuple[str, ...]) -> None:
    """Writes into a new directory what it will contain. Raises OSError."""
    text = json.dumps(
        {"instep_checkpoint": 1, "run": run, "layout": layout, "parts": names, "torch": torch.__version__}
    )
    (folder / LABEL).write_text(text, encoding="utf-8")


def read_label(folder: Path, owners: Owners) -> dict[str, Any] | None:
    """What `write_label` wrote there; None if it wrote nothing."""
    try:
        document = json.loads(read_file(folder, LABEL, owners, MAX_LABEL_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def write_part(folder: Path, name: str, state: Any) -> None:
    """Writes one file, flushed to the system but not yet synced to the disk. Raises OSError, as for a full disk."""
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
    """What `write_part` wrote, on the CPU. Raises CheckpointError if it cannot be read.

    `peek`: reads a tensor from the disk only when its values are used.
    """
    path = folder / file_of(name)
    try:
        with open_file(folder, file_of(name), owners) as file:
            opened = f"/proc/self/fd/{file.fileno()}"  # the file that was checked, even if the name now leads elsewhere
            return torch.load(opened, map_location="cpu", weights_only=weights_only, mmap=peek)
    except FileNotFoundError:
        there = ", ".join(sorted(file.stem for file in folder.glob("*.pt"))) or "none"
        raise CheckpointError(
            f"the checkpoint in {folder} has no part {name!r}, it has {there}: leave it out of the Checkpointer "
            "until the run has resumed from this checkpoint"
        ) from None
    except pickle.UnpicklingError as error:
        unsafe = _unsafe_in(path) if weights_only else ""
        problem = f"holds {unsafe}: {_HOW_TO_TRUST}" if unsafe else f"cannot be read: {error}"
        raise CheckpointError(f"{path} {problem}") from error
    except (OSError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def load_part(name: str, part: Part, state: Any) -> None:
    """Loads `state` into the part. Raises CheckpointError if it does not fit, as with another model."""
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint's {name} does not fit this script's: {error}") from error


class _Sink:
    """A file that keeps the disk's error: torch hides it behind an unrelated RuntimeError."""

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
    """Names of classes and functions in the file that torch does not load by default. Reads no tensors."""
    with contextlib.suppress(Exception):  # an unreadable file yields no names
        return ", ".join(sorted(get_unsafe_globals_in_checkpoint(os.fspath(path))))
    return ""


def file_of(name: str) -> str:
    """The file of a part, in the checkpoint's directory."""
    return f"{name}.pt"


def _needs_sharded(part: Part) -> str | None:
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
    "torch loads that only after torch.serialization.add_safe_globals([...]) for it, or with weights_only=False passed "
    "to the Checkpointer, which runs code in the file"
)


def on_cpu(state: Any) -> Any:
    """A copy of `state` on the CPU. Waits for the devices that hold it, and takes as much memory as the state.

    Tensors that share one storage as the same view (tied weights) are still shared in the copy.
    """
    return _copied(state, _once(lambda tensor: tensor.to("cpu", copy=True)))


def copied_from_cpu(state: Any) -> Any:
    """`state` with copies of its CPU tensors. Tensors on other devices are not copied: the caller moves them to the
    CPU."""
    return _copied(state, _once(lambda tensor: tensor.clone() if tensor.device.type == "cpu" else tensor))


def _once(take: Take) -> Take:
    taken: dict[tuple[Any, ...], Tensor] = {}

    def take_once(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if type(tensor) is not Tensor or tensor.is_sparse:  # a DTensor or similar, whose storage is not the whole value
            return take(tensor)
        place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype)
        key = (*place, tuple(tensor.shape), tensor.stride())
        if key not in taken or tensor.numel() == 0:
            taken[key] = take(tensor)
        return taken[key]

    return take_once


def _copied(state: Any, take: Take) -> Any:
    if isinstance(state, Tensor):
        return take(state)
    if isinstance(state, Mapping):
        copied: Any = copy.copy(state)  # keeps attributes: a model's state dict has versions in one
        for name, value in state.items():
            copied[name] = _copied(value, take)
        return copied
    if isinstance(state, tuple):
        values = [_copied(value, take) for value in state]
        return type(state)(*values) if hasattr(state, "_fields") else tuple(values)
    if isinstance(state, list):
        return [_copied(value, take) for value in state]
    return copy.deepcopy(state)


def left_out(parts: Mapping[str, Any]) -> list[str]:
    """A message for each gradient scaler, and each scheduler of an optimizer among `parts`, that is not a part itself.

    Searches all objects of the process, which takes some milliseconds. One that is inside a part or another scheduler
    counts as saved.
    """
    inside = [thing for part in parts.values() for thing in _inside(part)]
    held = {id(thing) for thing in inside}
    steered = {id(unwrapped_optimizer(thing)) for thing in inside if isinstance(thing, Optimizer)}
    living = [thing for thing in gc.get_objects() if issubclass(type(thing), _KINDS)]
    nested = {id(inner) for thing in living for inner in _inside(thing) if inner is not thing}
    missing = [thing for thing in living if id(thing) not in held | nested]
    return [
        *(_of_scheduler(it) for it in missing if isinstance(it, LRScheduler) and _optimizer_of(it) in steered),
        *(_of_scaler(it) for it in missing if isinstance(it, GradScaler) and it.is_enabled() and steered),
    ]


def _inside(thing: Any) -> Iterator[Any]:
    """The object itself and the values of its attributes, including items of lists."""
    yield thing
    for value in getattr(thing, "__dict__", {}).values():
        yield from value if isinstance(value, list | tuple) else (value,)


def _optimizer_of(scheduler: LRScheduler) -> int:
    """The id of its optimizer; 0 for a scheduler that is still being created."""
    optimizer = getattr(scheduler, "optimizer", None)
    return id(unwrapped_optimizer(optimizer)) if optimizer is not None else 0


def _of_scheduler(scheduler: LRScheduler) -> str:
    return (
        f"the checkpoints do not hold the {type(scheduler).__name__}: a run that resumes starts its schedule from the "
        "beginning; pass it to the Checkpointer, as in Checkpointer(..., scheduler=scheduler)"
    )


def _of_scaler(scaler: GradScaler) -> str:
    return (
        f"the checkpoints do not hold the {type(scaler).__name__}: a run that resumes starts from its first loss scale "
        "and skips steps until the scale fits; pass it to the Checkpointer, as in Checkpointer(..., scaler=scaler)"
    )
