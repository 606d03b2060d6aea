"""The ranks as torchrun would keep them: processes that are started, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import instep
from chaos.board import Board, Word
from chaos.faults import RANKS_PER_NODE, WORLD_SIZE
from chaos.nodes import Node

SOURCES = (Path(instep.__file__).resolve().parents[1], Path(__file__).resolve().parents[1])
CHECKPOINTS = "checkpoints"
"""The folder of the ranks' checkpoints, below that of the session."""
END_TIMEOUT_S = 5.0
TAIL_BYTES = 3000


class Ranks:
    """All ranks of the run. An epoch lasts as long as one of its ranks lives: within it no step is repeated by all.

    A rank that is started again begins with the first step that it has not done, as if its state had been fetched
    from its peers. To be used from the main thread only: the ranks end with the thread that started them.
    """

    def __init__(self, folder: Path, nodes: list[Node], *, step_s: float) -> None:
        self.board = Board(folder / "board", WORLD_SIZE, create=True)
        self.epoch = 1
        self.starts = 0
        self.kills = 0
        self._last_steps: dict[int, dict[int, int]] = {rank: {} for rank in range(WORLD_SIZE)}
        self._folder = folder
        self._nodes = nodes
        self._step_s = step_s
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._lives = dict.fromkeys(range(WORLD_SIZE), 0)

    def __repr__(self) -> str:
        return f"Ranks(epoch={self.epoch}, starts={self.starts}, {self.board!r})"

    def node_of(self, rank: int) -> Node:
        return self._nodes[rank // RANKS_PER_NODE]

    def records(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.jsonl"

    def begun(self, rank: int) -> Path:
        return self.records(rank).with_suffix(".steps")

    def lives(self, rank: int) -> dict[int, int]:
        """The last step whose boundary was passed in each life of a rank, the present one included."""
        return {**self._last_steps[rank], self._lives[rank]: self.board.get(rank, Word.PASSED)}

    def start(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self._lives[rank] += 1
            self.starts += 1
            arguments = [self._folder / "board", self.records(rank), self.epoch, self._lives[rank], self._step_s]
            with self._log(rank).open("ab") as log:
                self._processes[rank] = subprocess.Popen(
                    [sys.executable, "-P", "-m", "chaos.trainer", *map(str, arguments)],
                    env=self._environment(rank),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def kill(self, ranks: Iterable[int]) -> None:
        """SIGKILL, all at once; they are gone on return."""
        dying = {rank: self._processes.pop(rank) for rank in ranks if rank in self._processes}
        for process in dying.values():
            process.kill()
        for rank, process in dying.items():
            process.wait(END_TIMEOUT_S)
            self._last_steps[rank][self._lives[rank]] = self.board.get(rank, Word.PASSED)
        self.kills += len(dying)

    def begin_epoch(self) -> None:
        """After all have been killed: the next start goes on from the last step that all had done."""
        self.epoch += 1
        self.board.begin_at(self.board.lowest_arrived() + 1)

    def signal(self, rank: int, number: signal.Signals) -> None:
        self._processes[rank].send_signal(number)

    def hold_interpreter(self, rank: int, for_s: float) -> bool:
        """False when that rank has just been started and could not be asked yet."""
        if self.board.get(rank, Word.PID) != self._processes[rank].pid:
            return False
        self.board.set(rank, Word.HOLD_US, int(for_s * 1e6))
        self.signal(rank, signal.SIGUSR2)
        return True

    def ended(self) -> dict[int, int]:
        """Exit status by rank of those that have ended."""
        return {rank: code for rank, process in self._processes.items() if (code := process.poll()) is not None}

    def print_stacks(self) -> None:
        """Lets every rank that can write its stacks into its log; they are there a moment later."""
        for rank, process in self._processes.items():
            if process.poll() is None and self.board.get(rank, Word.PID) == process.pid:
                process.send_signal(signal.SIGUSR1)

    def log_tail(self, rank: int) -> str:
        text = self._log(rank).read_bytes() if self._log(rank).exists() else b""
        return text[-TAIL_BYTES:].decode(errors="replace")

    def close(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(END_TIMEOUT_S)
        self.board.close()

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"

    def _environment(self, rank: int) -> dict[str, str]:
        place = {"RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE), "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
        place["CHAOS_CHECKPOINTS"] = str(self._folder / CHECKPOINTS)
        return {**os.environ, **self.node_of(rank).environment(), **place}
