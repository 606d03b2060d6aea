"""The shards of a checkpoint: every rank writes its own, with torch.distributed.checkpoint. Collective: all ranks call.

Models and optimizers are sharded over the ranks' files. The other parts are the same on every rank; the leader writes
them as in a plain checkpoint.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.optim import Optimizer

from instep.errors import CheckpointError
from instep.worker.manifest import FileSum, Owners, sum_file

from .metadata import METADATA, CheckedPlanner, CheckedReader, files_in, read_metadata
from .parts import Part, copied_from_cpu

T = TypeVar("T")

_WRAPPERS: Final = ("_orig_mod", "_checkpoint_wrapped_module")


class Shards:
    """The models and optimizers among `parts`. `others` are the parts that are the same on every rank.

    Create it on all ranks: it creates its own process group (gloo), so background saves do not interfere with the
    collectives of the training.
    """

    def __init__(self, parts: Mapping[str, Part], *, rank: int, world_size: int) -> None:
        self._models = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        self._optimizers = {
            name: (_owner_of(name, part, self._models), part)
            for name, part in parts.items()
            if isinstance(part, Optimizer)
        }
        if not self._models:
            raise CheckpointError("sharded=True needs a model among the parts: Checkpointer(..., model=model)")
        mine = (*self._models, *self._optimizers)
        self.others = {name: part for name, part in parts.items() if name not in mine}
        _check_world(rank, world_size)
        self._group = dist.new_group(backend="gloo")

    def __repr__(self) -> str:
        return f"Shards({', '.join((*self._models, *self._optimizers))})"

    def all_gather(self, fact: T) -> list[T]:
        """Every rank's `fact`, by rank. Waits for all ranks."""
        facts: list[T | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(facts, fact, group=self._group)
        return facts  # type: ignore[return-value]  # none is left None

    def write(self, folder: Path) -> Metadata:
        """Returns when all ranks have written and flushed their files. Raises OSError, on all ranks, if one could
        not."""
        try:
            written: Metadata = save(self._state(), storage_writer=_writer(folder), process_group=self._group)
            return written
        except CheckpointException as error:
            raise _as_os_error(error) from error

    def start_writing(self, folder: Path) -> Future[Metadata]:
        """Returns when the state is copied. The future completes when all ranks have written and flushed their
        files."""
        state = copied_from_cpu(self._state())
        started: Any = async_save(state, storage_writer=_writer(folder), process_group=self._group)
        # Newer versions of torch return another object for other stagers than this writer's.
        future: Future[Metadata] = getattr(started, "upload_completion", started)
        return future

    def read(self, folder: Path, owners: Owners, *, weights_only: bool) -> None:
        """Loads the models and optimizers. Raises CheckpointError, on all ranks, if they do not fit.

        A parameter without optimizer state at the time of the save (it had no gradient yet) has none afterwards.
        """
        found = self._read_metadata(folder, owners)
        try:
            state = self._state(whole=True)
            idle = self._remove_idle(state, found)
            reader, planner = CheckedReader(folder, found, owners), CheckedPlanner(weights_only=weights_only)
            load(state, storage_reader=reader, planner=planner, process_group=self._group)
            for name, model in self._models.items():
                set_model_state_dict(model, state[name])
            for name, (model, optimizer) in self._optimizers.items():
                state[name]["state"] |= {fqn: of_it for fqn, (_, of_it) in idle[name].items()}  # torch wants them all
                set_optimizer_state_dict(model, optimizer, state[name])
                for parameter, _ in idle[name].values():
                    optimizer.state.pop(parameter, None)
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            raise CheckpointError(f"the checkpoint in {folder} does not fit this script's parts: {first}") from error
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint in {folder} does not fit this script's parts: {error}") from error

    def mismatch(self, found: Metadata) -> str | None:
        """Why the shards of `found` cannot be loaded into these models and optimizers, as far as one rank can tell;
        None if no problem was found. Changes nothing."""
        if any(
            type(part).__name__ == "FullyShardedDataParallel" for m in self._models.values() for part in m.modules()
        ):
            return None  # FSDP1: only all ranks together can list its state
        state: dict[str, Any] = {name: get_model_state_dict(model) for name, model in self._models.items()}
        for name, (model, optimizer) in self._optimizers.items():
            names: dict[Tensor, str] = {parameter: fqn for fqn, parameter in _named_parameters(model)}
            state[name] = {
                "state": {names[it]: held for it, held in optimizer.state.items() if it in names and held},
                "param_groups": [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
            }
        wanted, paths = flatten_state_dict(state)
        idle = _idle(paths, found, self._optimizers)
        for key, value in wanted.items():
            there = found.state_dict_metadata.get(key)
            if there is None and paths[key][:3] not in idle:
                return f"it has no {key}"  # or it is of another optimizer, whose groups have other options
            shape = getattr(there, "size", None)
            if shape is not None and isinstance(value, Tensor) and value.size() != shape:
                return f"{key} has the shape {tuple(shape)} there and {tuple(value.size())} in this script"
        return None

    def _read_metadata(self, folder: Path, owners: Owners) -> Metadata:
        """Raises CheckpointError, on all ranks, if one of them cannot read it."""
        problem, found = None, None
        try:
            found = read_metadata(folder, owners)
        except (OSError, ValueError) as error:
            problem = str(error)
        first = next((found for found in self.all_gather(problem) if found is not None), None)
        if found is None or first is not None:
            raise CheckpointError(f"the checkpoint in {folder} cannot be read: {first}")
        return found

    def _remove_idle(self, state: dict[str, Any], found: Metadata) -> dict[str, dict[str, tuple[nn.Parameter, Any]]]:
        """Removes from `state` the parameters without state in the checkpoint. Returns them by optimizer and name."""
        _, paths = flatten_state_dict({name: state[name] for name in self._optimizers})
        idle = _idle(paths, found, self._optimizers)
        taken: dict[str, dict[str, tuple[nn.Parameter, Any]]] = {name: {} for name in self._optimizers}
        for name, (_, optimizer) in self._optimizers.items():
            fqns = [fqn for group in state[name]["param_groups"] for fqn in group["params"]]
            held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for fqn, parameter in zip(fqns, held, strict=False):
                if (name, "state", fqn) in idle:
                    taken[name][fqn] = (parameter, state[name]["state"].pop(fqn))
        return taken

    def _state(self, *, whole: bool = False) -> dict[str, Any]:
        """The state of models and optimizers. torch initializes an optimizer without state, by a step without gradients
        and with lr 0. With `whole`, each optimizer starts without state, so all of its parameters get one."""
        state: dict[str, Any] = {name: get_model_state_dict(model) for name, model in self._models.items()}
        for name, (model, optimizer) in self._optimizers.items():
            with _without_state(optimizer) if whole else nullcontext():
                state[name] = get_optimizer_state_dict(model, optimizer)
        return state


def check_files_visible(folder: Path, metadata: Metadata) -> None:
    """Raises OSError if a rank's file is not visible from this host: that rank's folder is not the shared one."""
    for name in sorted({METADATA, *files_in(metadata)}):
        if not (folder / name).is_file():
            text = "a rank's file is not there: all hosts must share this folder"
            raise FileNotFoundError(errno.ENOENT, text, str(folder / name))


def checksums_of_rank(folder: Path, metadata: Metadata, rank: int) -> dict[str, FileSum]:
    """Checksums of the files that this rank wrote, while they are still in this host's page cache. Raises OSError."""
    mine = {name for name in files_in(metadata) if name.startswith(f"__{rank}_")}
    return {name: sum_file(folder / name, sync=False) for name in mine}


def result_of(written: Future[Metadata]) -> Metadata:
    """Waits for a background save and returns its result. Raises OSError like `Shards.write`."""
    try:
        return written.result()
    except CheckpointException as error:
        raise _as_os_error(error) from error


@contextmanager
def _without_state(optimizer: Optimizer) -> Iterator[None]:
    """Deletes the state permanently, and the gradients inside the block: torch then creates the state again."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in held]
    optimizer.state.clear()
    for parameter in held:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(held, gradients, strict=True):
            parameter.grad = gradient


def _idle(paths: Mapping[str, tuple[Any, ...]], found: Metadata, optimizers: Container[str]) -> set[tuple[Any, ...]]:
    """Parameters, as (optimizer, "state", name), without optimizer state in the checkpoint."""
    places = {key: path[:3] for key, path in paths.items() if path[0] in optimizers and path[1] == "state"}
    there = {place for key, place in places.items() if key in found.state_dict_metadata}
    return {place for place in places.values() if place not in there}


def _named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with the names that torch.distributed.checkpoint uses."""
    for name, parameter in model.named_parameters():
        yield ".".join(part for part in name.split(".") if part not in _WRAPPERS), parameter


def _writer(folder: Path) -> FileSystemWriter:
    return FileSystemWriter(folder, overwrite=False)


def _as_os_error(error: CheckpointException) -> OSError:
    """The error of the lowest failed rank if all are disk errors. Otherwise raises RuntimeError."""
    failures = {rank: failure[0] for rank, failure in sorted(error.failures.items())}
    if not all(isinstance(failure, OSError) for failure in failures.values()):
        raise RuntimeError(str(error)) from error
    rank, failure = next(iter(failures.items()))
    return OSError(getattr(failure, "errno", None) or errno.EIO, f"rank {rank}: {failure}")


def _owner_of(name: str, optimizer: Optimizer, models: Mapping[str, nn.Module]) -> nn.Module:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for model in models.values():
        if held <= {id(parameter) for parameter in model.parameters()}:
            return model
    raise CheckpointError(
        f"{name} holds parameters of none of the models {', '.join(models) or '(there is none)'}: with sharded=True "
        "pass the model that has its parameters, and build the optimizer after fully_shard"
    )


def _check_world(rank: int, world_size: int) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise CheckpointError("sharded=True needs torch.distributed: call dist.init_process_group before")
    if (dist.get_rank(), dist.get_world_size()) != (rank, world_size):
        raise CheckpointError(
            f"this process is rank {dist.get_rank()} of {dist.get_world_size()} in torch.distributed and rank {rank} "
            f"of {world_size} in the run: they must be the same for sharded=True"
        )
