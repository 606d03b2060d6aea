"""How the ranks save with a Checkpointer: the ranks that do not save wait for the one that does."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

import torch

import instep.torch
from chaos import content
from chaos.harness.records import RecordWriter
from chaos.trainer import TrainerSpec

torch.set_num_threads(1)

KEEP: Final = 3
PIECES: Final = 5


class SlowState(OrderedDict[str, torch.Tensor]):
    """A state dict that is written slowly. It is read as a plain one."""

    takes_s = 0.0

    def __copy__(self) -> Self:
        twin = type(self)(self)
        twin.takes_s = self.takes_s
        return twin

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, self._slowly()

    def _slowly(self) -> Iterator[tuple[str, torch.Tensor]]:
        for item in self.items():
            time.sleep(self.takes_s / len(self))
            yield item


class Part:
    """One part of the content, as of the last step."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.data = b""
        self.takes_s = 0.0
        self._begin = begin

    def state_dict(self) -> SlowState:
        self._begin()
        size = 1 + len(self.data) // PIECES
        pieces = [self.data[start : start + size] for start in range(0, len(self.data), size)]
        state = SlowState((str(number), _tensor(piece)) for number, piece in enumerate(pieces))
        state.takes_s = self.takes_s
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.data = b"".join(bytes(state[name].numpy()) for name in sorted(state, key=int))


class TorchSaver:
    restores = True

    def __init__(self, run: instep.Run[Any], spec: TrainerSpec, records: RecordWriter) -> None:
        self._spec = spec
        self._records = records
        self._step = -1
        self._begun = -1
        self._parts = {name: Part(self._begin) for name in content.PARTS}
        parts: dict[str, Any] = dict(self._parts)
        self._checkpointer = instep.torch.Checkpointer(
            run, Path(spec.folder), keep=KEEP, background=spec.background, **parts
        )

    def restore(self) -> tuple[str | None, int, str]:
        following = self._checkpointer.restore(self._spec.patience_s)
        held = {name: part.data for name, part in self._parts.items()}
        return None, following, content.digest(held) if following else ""

    def wants(self, step: int) -> bool:
        return content.is_saved(self._spec.seed, step)

    def save(self, step: int) -> dict[str, object]:
        self._step = step
        takes_s = content.length_s(self._spec.seed, step)
        for name, data in content.content(self._spec.seed, step).items():
            self._parts[name].data, self._parts[name].takes_s = data, takes_s / len(content.PARTS)
        return {"known": self._checkpointer.save(step)}

    def _begin(self) -> None:
        """Only the saver's state is read, once its directory exists."""
        if self._begun != self._step:
            self._begun = self._step
            self._records.write("opened", step=self._step)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
