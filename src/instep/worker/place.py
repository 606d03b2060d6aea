"""Which rank this process is, and of how many. Pure: takes the environment and the process group.

A process that does not know its rank must not join as rank 0 of 1 if others were started with it: each would train
alone under the same run name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from instep.errors import SettingsError
from instep.wire.documents import Elastic

LAUNCHERS: Final = (
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    ("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),
    ("PMI_RANK", ("PMI_SIZE",)),
    ("SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),
)
"""Variables for the rank and for the number of processes. MPI comes first: below `mpirun`, Slurm counts daemons."""
SIGNS_OF_OTHERS: Final = (
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
)
NO_RUN_ID: Final = "none"
"""torchrun's id if none was given: it does not distinguish two starts."""
MAX_RUN_ID: Final = 128


class Place(NamedTuple):
    rank: int
    size: int


def place(rank: int | None, world_size: int | None, environ: Mapping[str, str], group: Place | None = None) -> Place:
    """The arguments of `join` come first, then `group` (from torch.distributed, if initialized), then RANK and
    WORLD_SIZE, then the variables of MPI or Slurm, else 0 of 1.

    Raises SettingsError for an invalid number or rank, and if other processes were started but nothing tells this
    one's rank.
    """
    rank, size = _completed(_checked(rank, "rank"), _checked(world_size, "world_size"), group)
    rank = number(environ, "RANK") if rank is None else rank
    size = number(environ, "WORLD_SIZE") if size is None else size
    for names in LAUNCHERS:
        rank, size = _completed(rank, size, _of(environ, *names))
    if rank is None or size is None:
        _refuse_to_guess(rank, size, environ)
        rank, size = 0, 1
    if size < 1:
        raise SettingsError(f"the world size is {size}: it must be at least 1")
    if not 0 <= rank < size:
        raise SettingsError(f"rank {rank} does not exist in a world of {size}: ranks run from 0 to {size - 1}")
    return Place(rank, size)


def initialized_group() -> Place | None:
    """This process's place in torch.distributed, if the script has initialized that. Never imports it."""
    module = sys.modules.get("torch.distributed")
    try:
        if module is not None and module.is_available() and module.is_initialized():
            return Place(module.get_rank(), module.get_world_size())
    except (AttributeError, RuntimeError, ValueError):  # it is being imported or destroyed
        pass
    return None


def _completed(rank: int | None, size: int | None, found: Place | None) -> tuple[int | None, int | None]:
    """Fills in what is missing, from a source that does not contradict what is known."""
    if found is None or None not in (rank, size) or rank not in (None, found.rank) or size not in (None, found.size):
        return rank, size
    return found


def _refuse_to_guess(rank: int | None, size: int | None, environ: Mapping[str, str]) -> None:
    """Raises SettingsError if there are signs of other processes."""
    sizes = {name: number(environ, name) for name in SIGNS_OF_OTHERS} | {"world size": size}
    ranks = {"LOCAL_RANK": number(environ, "LOCAL_RANK"), "rank": rank}
    signs = [f"{name} {value}" for name, value in sizes.items() if (value or 0) > 1]
    signs += [f"{name} {value}" for name, value in ranks.items() if value]
    if signs:
        raise SettingsError(
            f"this process was started with others ({', '.join(signs)}) and cannot tell which rank it is, or of how "
            "many: start the script with torchrun or srun, initialize torch.distributed before instep.join, or pass "
            "rank= and world_size= to instep.join; set RANK=0 and WORLD_SIZE=1 for a process of its own"
        )


def _of(environ: Mapping[str, str], rank_name: str, size_names: tuple[str, ...]) -> Place | None:
    rank = number(environ, rank_name)
    size = next((found for name in size_names if (found := number(environ, name)) is not None), None)
    return Place(rank, size) if rank is not None and size is not None else None


def _checked(given: int | None, name: str) -> int | None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
        raise SettingsError(f"{name} is {given!r}: it must be a whole number")
    return given


def number(environ: Mapping[str, str], variable: str) -> int | None:
    """None if the variable is not set, or empty. Raises SettingsError if it is not a whole number."""
    text = environ.get(variable)
    try:
        return int(text) if text else None
    except ValueError:
        raise SettingsError(f"{variable} is {text!r}: it must be a whole number") from None


def elastic(environ: Mapping[str, str]) -> Elastic | None:
    """What torchrun passes to this process; None if torchrun did not start it. Invalid numbers are left out: they are
    for display."""
    restarts = _number(environ.get("TORCHELASTIC_RESTART_COUNT", ""))
    max_restarts = _number(environ.get("TORCHELASTIC_MAX_RESTARTS", ""))
    if restarts is None or max_restarts is None:
        return None
    run_id = environ.get("TORCHELASTIC_RUN_ID", "")
    group_rank = _number(environ.get("GROUP_RANK", ""))
    return Elastic(restarts, max_restarts, group_rank, "" if run_id == NO_RUN_ID else run_id[:MAX_RUN_ID])


def has_several_nodes(environ: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process, and its world has more than one node."""
    return "TORCHELASTIC_RUN_ID" in environ and (_number(environ.get("GROUP_WORLD_SIZE", "")) or 1) > 1


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
