"""The nodes and ranks of both parts of a session."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaos.fault_plan import NODES, RANKS_PER_NODE, TTL_S
from chaos.harness.node import LinkedNode
from chaos.harness.ranks import CHECKPOINTS, SHARED, Ranks, run_python
from chaos.operator import RUN
from chaos.trainer import TrainerSpec

STEP_S: Final = 0.02
PATIENCE_S: Final = 240.0


def make_nodes(folder: Path, endpoints: Sequence[str], namespace: str) -> list[LinkedNode]:
    return [LinkedNode(name, folder, endpoints, namespace, ttl_s=TTL_S) for name in "abcdefgh"[:NODES]]


def make_ranks(folder: Path, nodes: Sequence[LinkedNode]) -> Ranks:
    spec = TrainerSpec(
        run=RUN,
        shared=str(folder / SHARED),
        records="",
        folder=str(folder / CHECKPOINTS),
        saver="chaos.savers:TinySaver",
        step_s=STEP_S,
        patience_s=PATIENCE_S,
    )
    return Ranks(folder, nodes, spec, per_node=RANKS_PER_NODE, launch=run_python)
