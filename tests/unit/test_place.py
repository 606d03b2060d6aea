"""Which rank a process is, according to its launcher; and when it must not guess."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from instep.errors import SettingsError
from instep.worker.place import Place, initialized_group, place

SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("given", "environ", "group", "found"),
    [
        ((None, None), {}, None, (0, 1)),
        ((None, None), {"RANK": "2", "WORLD_SIZE": "4"}, None, (2, 4)),
        ((1, 3), {"RANK": "2", "WORLD_SIZE": "4"}, Place(0, 2), (1, 3)),
        ((1, None), {"WORLD_SIZE": "4"}, None, (1, 4)),
        ((None, 4), {"RANK": "2"}, None, (2, 4)),
        ((None, 1), {}, None, (0, 1)),
        ((None, None), {"RANK": "0"}, None, (0, 1)),
        ((None, None), {"WORLD_SIZE": "1", "RANK": ""}, None, (0, 1)),
        ((None, None), {}, Place(1, 2), (1, 2)),
        ((None, None), {"RANK": "0", "WORLD_SIZE": "1"}, Place(1, 2), (1, 2)),
        ((None, None), SRUN, None, (3, 4)),
        ((None, None), {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, None, (3, 8)),
        ((None, None), {**SRUN, "RANK": "0", "WORLD_SIZE": "2"}, None, (0, 2)),
        ((None, None), MPIRUN, None, (1, 2)),
        ((None, None), {**SRUN, **MPIRUN}, None, (1, 2)),
        ((None, None), {"PMI_RANK": "5", "PMI_SIZE": "6"}, None, (5, 6)),
        ((None, None), {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, None, (1, 2)),
        ((None, None), {"SLURM_NTASKS": "1"}, None, (0, 1)),
        ((None, None), {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None, (0, 1)),
    ],
)
def test_a_process_takes_its_place_from_the_first_source_that_knows_both(
    given: tuple[int | None, int | None], environ: dict[str, str], group: Place | None, found: tuple[int, int]
) -> None:
    assert place(*given, environ, group) == found


@pytest.mark.parametrize(
    ("given", "environ", "sign"),
    [
        ((None, None), {"WORLD_SIZE": "2"}, "world size 2"),
        ((None, None), {"SLURM_NTASKS": "4"}, "SLURM_NTASKS 4"),
        ((None, None), {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS 4"),
        ((None, None), {"LOCAL_RANK": "1"}, "LOCAL_RANK 1"),
        ((None, None), {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE 2"),
        ((None, None), {"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE 2"),
        ((None, None), {"RANK": "3"}, "rank 3"),
        ((None, 4), {}, "world size 4"),
        ((2, None), {}, "rank 2"),
        ((None, None), {"RANK": "0", "SLURM_NTASKS": "4"}, "SLURM_NTASKS 4"),
    ],
)
def test_a_process_of_a_group_without_a_known_rank_is_refused_with_the_fix(
    given: tuple[int | None, int | None], environ: dict[str, str], sign: str
) -> None:
    with pytest.raises(SettingsError, match="cannot tell which rank") as refused:
        place(*given, environ)
    for part in (sign, "torchrun", "srun", "pass rank= and world_size=", "RANK=0 and WORLD_SIZE=1"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("given", "environ", "text"),
    [
        ((None, None), {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ((None, None), {"SLURM_PROCID": "x", "SLURM_NTASKS": "2"}, "SLURM_PROCID is 'x'"),
        ((None, None), {"RANK": "4", "WORLD_SIZE": "4"}, "rank 4 does not exist"),
        ((-1, 2), {}, "rank -1 does not exist"),
        ((0, 0), {}, "at least 1"),
        ((True, 2), {}, "rank is True"),
        (("0", 2), {}, "rank is '0'"),
    ],
)
def test_an_invalid_place_is_refused(given: Any, environ: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        place(*given, environ)


def test_torch_distributed_is_used_only_if_imported_and_initialized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.distributed", raising=False)
    assert initialized_group() is None
    module = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch.distributed", module)  # type: ignore[misc]
    assert initialized_group() is None
    module.is_initialized, module.get_rank, module.get_world_size = lambda: True, lambda: 1, lambda: 2
    assert initialized_group() == Place(1, 2)
    del module.is_available
    assert initialized_group() is None
