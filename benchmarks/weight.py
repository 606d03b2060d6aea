"""What Instep adds to a trainer: the import time, and memory after joining."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import instep
from benchmarks.figures import Figure, median
from benchmarks.fleet import Fleet
from instep.testing import EtcdServer

TRAINER = """
import instep
class Hyper(instep.Hyperparameters):
    lr: float = instep.fixed(3e-4, gt=0)
    clip: float = 1.0
    batch_size: int = 32
import sys
assert "grpc" not in sys.modules and "torch" not in sys.modules
"""
PYDANTIC = """
import pydantic
class Hyper(pydantic.BaseModel):
    lr: float = 3e-4
"""


async def measure(*, quick: bool) -> list[Figure]:
    return [*_imports(quick=quick), *await _memory(quick=quick)]


# -- time ----------------------------------------------------------------------------------------------------------


def _imports(*, quick: bool) -> list[Figure]:
    rounds = 5 if quick else 15
    wall: dict[str, list[float]] = {"pass": [], PYDANTIC: [], TRAINER: []}
    cpu: dict[str, list[float]] = {program: [] for program in wall}
    for index in range(rounds + 1):
        for program in wall:
            wall_s, cpu_s = _interpreter(program)
            if index:  # the first finds cold files
                wall[program].append(wall_s)
                cpu[program].append(cpu_s)
    return [
        Figure(
            measure="import instep and define Hyperparameters: median",
            value=_added(wall, TRAINER),
            unit="s",
            target=0.15,
            note=f"run time of an interpreter minus that of a bare one, {rounds} pairs; loads neither grpc nor torch",
        ),
        Figure(measure="import instep and define Hyperparameters: CPU time", value=_added(cpu, TRAINER), unit="s"),
        Figure(measure="import pydantic: CPU time", value=_added(cpu, PYDANTIC), unit="s"),
        Figure(measure="interpreter with instep: median", value=median(wall[TRAINER]), unit="s"),
        Figure(measure="bare interpreter: median", value=median(wall["pass"]), unit="s"),
    ]


def _added(times: dict[str, list[float]], program: str) -> float:
    return median([mine - bare for mine, bare in zip(times[program], times["pass"], strict=True)])


def _interpreter(program: str) -> tuple[float, float]:
    """Wall clock and CPU time, in seconds, of a new interpreter that runs `program`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(instep.__file__).parent.parent)}
    began = perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, cwd="/")
    _pid, status, usage = os.wait4(process.pid, 0)
    wall_s = perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"an interpreter that imports instep ended with {process.returncode}")
    return wall_s, usage.ru_utime + usage.ru_stime


# -- memory --------------------------------------------------------------------------------------------------------


async def _memory(*, quick: bool) -> list[Figure]:
    rounds = 1 if quick else 3
    with EtcdServer(fsync=True) as server:
        torch = await _added_mb(server, "torch", rounds)
        bare = await _added_mb(server, "-", rounds)
    return [
        Figure(
            measure="added to a trainer with torch: RSS",
            value=torch["Rss"],
            unit="MB",
            target=15.0,
            note="from before `import instep` to 1000 steps after joining, every mapped page counted in full",
        ),
        Figure(
            measure="added to a trainer without torch: PSS",
            value=bare["Pss"],
            unit="MB",
            target=15.0,
            note="one trainer and its agent; pages of libraries that both use are counted half",
        ),
        Figure(measure="added to a trainer without torch: RSS", value=bare["Rss"], unit="MB"),
    ]


async def _added_mb(server: EtcdServer, module: str, rounds: int) -> dict[str, float]:
    """Medians over `rounds` trainers, each of which imports `module` first."""
    documents = [await _one(server, module) for _ in range(rounds)]
    return {kind: median([document[kind] for document in documents]) for kind in ("Rss", "Pss", "Private")}


async def _one(server: EtcdServer, module: str) -> dict[str, float]:
    async with Fleet(server, "weight", module, per_node=1) as fleet:
        document: dict[str, float] = await fleet.workers[0].hear()
    return document
