"""The ranks of a run as torchrun keeps them: processes that are started, killed and restarted."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from chaos.harness.fork_server import ForkedProcess, ForkServer
from chaos.harness.node import Node
from chaos.harness.processes import send
from chaos.harness.records import Record, RecordReader
from chaos.harness.shared_state import NO_STEP, Field, SharedState
from chaos.trainer import TrainerSpec

CHECKPOINTS = "checkpoints"
"""The folder of the ranks' checkpoints, below that of the session."""
SHARED = "shared"
END_TIMEOUT_S = 5.0
TAIL_BYTES = 3000

Process: TypeAlias = "subprocess.Popen[bytes] | ForkedProcess"
Launch: TypeAlias = Callable[[Sequence[str], dict[str, str], Path], Process]
"""Starts a trainer with arguments and environment; its output goes to the file."""


def run_python(arguments: Sequence[str], environment: dict[str, str], log: Path) -> Process:
    """Starts each rank as a separate interpreter."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "chaos.trainer", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def fork_from(server: ForkServer) -> Launch:
    return lambda arguments, environment, log: server.start("chaos.trainer:main", arguments, environment, log=log)


class Rank:
    """One process of a rank. Its records and its log continue those of the process before it."""

    def __init__(self, number: int, node: Node, life: int, reader: RecordReader, log: Path, process: Process) -> None:
        self.number = number
        self.node = node
        self.life = life
        self.log = log
        self.process = process
        self._reader = reader

    def __repr__(self) -> str:
        return f"rank {self.number} on node {self.node.name}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.poll()

    def said(self, event: str, **facts: object) -> list[Record]:
        """The records of this process."""
        return self._reader.select(event, life=self.life, **facts)

    def log_tail(self) -> str:
        text = self.log.read_bytes() if self.log.exists() else b""
        return text[-TAIL_BYTES:].decode(errors="replace")


class Ranks:
    """All ranks of the run, in equal numbers on the nodes. An epoch lasts until all of its ranks have ended:
    within it, no step is repeated by all ranks.

    Use it only from the main thread: the ranks end with the thread that started them.
    """

    def __init__(
        self, folder: Path, nodes: Sequence[Node], spec: TrainerSpec, *, per_node: int, launch: Launch
    ) -> None:
        self.world_size = len(nodes) * per_node
        self.shared = SharedState(folder / SHARED, self.world_size, create=True)
        self.epoch = 1
        self.starts = 0
        self.kills = 0
        self.processes: dict[int, Rank] = {}
        """The last process of each rank, if it was not killed."""
        self._spec = spec
        self._per_node = per_node
        self._launch = launch
        self._folder = folder
        self._nodes = nodes
        self._last_steps: dict[int, dict[int, int]] = {rank: {} for rank in range(self.world_size)}
        self._lives = dict.fromkeys(range(self.world_size), 0)
        self._readers = {rank: RecordReader(self.records(rank)) for rank in range(self.world_size)}

    def __repr__(self) -> str:
        return f"Ranks(epoch={self.epoch}, starts={self.starts}, {self.shared!r})"

    @property
    def all(self) -> list[Rank]:
        return [self.processes[rank] for rank in sorted(self.processes)]

    def node_of(self, rank: int) -> Node:
        return self._nodes[rank // self._per_node]

    def on(self, node: Node) -> list[Rank]:
        return [rank for rank in self.all if rank.node is node]

    # -- what they write down -----------------------------------------------------------------------------------------

    def records(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.jsonl"

    def step_log(self, rank: int) -> Path:
        return self.records(rank).with_suffix(".steps")

    def lives(self, rank: int) -> dict[int, int]:
        """The last step whose boundary was passed by each process of a rank, the present one included."""
        return {**self._last_steps[rank], self._lives[rank]: self.shared.get(rank, Field.PASSED)}

    def said(self, rank: int, event: str) -> list[Record]:
        """The records of all processes of that rank."""
        return self._readers[rank].select(event)

    def log_tail(self, rank: int) -> str:
        text = self._log(rank).read_bytes() if self._log(rank).exists() else b""
        return text[-TAIL_BYTES:].decode(errors="replace")

    # -- how they start and end ---------------------------------------------------------------------------------------

    def start(self, ranks: Iterable[int], *, background: bool = False) -> None:
        for rank in ranks:
            self._lives[rank] += 1
            self.starts += 1
            node, life = self.node_of(rank), self._lives[rank]
            spec = replace(
                self._spec,
                records=str(self.records(rank)),
                epoch=self.epoch,
                process=life,
                background=background,
            )
            process = self._launch([spec.as_json], self._environment(rank), self._log(rank))
            self.processes[rank] = Rank(rank, node, life, self._readers[rank], self._log(rank), process)

    def start_all(self, *, background: bool = False) -> None:
        """Starts all ranks, at step 0 or from a checkpoint; all must have ended."""
        assert all(rank.code is not None for rank in self.all), "ranks of before still run"
        self.shared.begin_at(0)
        self.shared.end_after(NO_STEP)
        self.start(range(self.world_size), background=background)

    def kill(self, ranks: Iterable[int]) -> None:
        """Sends SIGKILL to all of them, then waits for their end."""
        dying = {rank: self.processes.pop(rank) for rank in ranks if rank in self.processes}
        for one in dying.values():
            one.process.kill()
        for rank, one in dying.items():
            one.process.wait(END_TIMEOUT_S)
            self._last_steps[rank][self._lives[rank]] = self.shared.get(rank, Field.PASSED)
        self.kills += len(dying)

    def begin_epoch(self) -> None:
        """Call it after all have been killed: the next start continues from the last step that all have done."""
        self.epoch += 1
        self.shared.begin_at(self.shared.lowest_arrived() + 1)

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """Sends a signal to these ranks, or to all. Skips those that have ended."""
        chosen = ranks or tuple(self.processes)
        send([self.processes[rank].pid for rank in chosen if self.processes[rank].code is None], number)

    def hold_interpreter(self, rank: int, for_s: float) -> bool:
        """False if that rank was just started and has no handler yet."""
        if self.shared.get(rank, Field.PID) != self.processes[rank].pid:
            return False
        self.shared.set(rank, Field.HOLD_US, int(for_s * 1e6))
        self.signal(signal.SIGUSR2, rank)
        return True

    def ended(self) -> dict[int, int]:
        """Exit code by rank of those that have ended."""
        return {rank: code for rank, one in self.processes.items() if (code := one.code) is not None}

    def print_stacks(self) -> None:
        """Makes every rank that can write its stacks into its log, shortly afterwards."""
        for rank, one in self.processes.items():
            if self.shared.get(rank, Field.PID) == one.pid:
                self.signal(signal.SIGUSR1, rank)

    def close(self) -> None:
        for one in self.processes.values():
            if one.code is None:
                one.process.kill()
                one.process.wait(END_TIMEOUT_S)
        self.shared.close()

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"

    def _environment(self, rank: int) -> dict[str, str]:
        return {**self.node_of(rank).environment(), "RANK": str(rank), "WORLD_SIZE": str(self.world_size)}
