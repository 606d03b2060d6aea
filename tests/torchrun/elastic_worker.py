"""What torchrun runs in the live tests: a worker that says where it is and trains until a file tells it to stop.

    elastic_worker.py FOLDER HOW

HOW is `gloo` (all_reduce of torch), `line` (as gloo: a step needs every rank, and a peer's death ends it; without the
seconds that importing torch takes) or `alone` (a step needs nobody else). Events go to FOLDER/{node}.said, one JSON a
line; FOLDER/stop ends the training with exit code 0, FOLDER/fail-{node}-{restart} with 3.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

STEP_S = 0.02
SAY_EVERY_S = 0.2
MEET_S = 60.0


class World(ABC):
    """A barrier of all ranks that also gives each of them what rank 0 says."""

    @abstractmethod
    def step(self, word: int) -> int: ...


class Alone(World):
    def step(self, word: int) -> int:
        return word


class Gloo(World):
    def __init__(self) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        self._torch, self._dist = torch, dist

    def step(self, word: int) -> int:
        told = self._torch.tensor([1, word if self._dist.get_rank() == 0 else 0])
        self._dist.all_reduce(told)
        assert told[0] == self._dist.get_world_size(), told
        return int(told[1])


class Line(World):
    """Rank 0 hears a byte of every rank and answers all; a connection that ends raises."""

    def __init__(self, folder: Path, place: dict[str, Any]) -> None:
        path = folder / f"world-{place['world'].rpartition(':')[2]}"
        self._peers = _listen(path, place["size"] - 1, place["world"]) if place["rank"] == 0 else [_reach(path, place)]
        self._first = place["rank"] == 0

    def step(self, word: int) -> int:
        if not self._first:
            self._peers[0].sendall(b"+")
            return _byte(self._peers[0])
        for peer in self._peers:
            _byte(peer)
        for peer in self._peers:
            peer.sendall(bytes([word]))
        return word


def _listen(path: Path, peers: int, world: str) -> list[socket.socket]:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(MEET_S)
    found: dict[int, socket.socket] = {}
    while len(found) < peers:
        peer, _ = listener.accept()
        said = json.loads(_line(peer))
        assert said["world"] == world, said
        assert said["rank"] not in found, f"two workers have rank {said['rank']} in {world}"
        found[said["rank"]] = peer
    return list(found.values())


def _reach(path: Path, place: dict[str, Any]) -> socket.socket:
    deadline = time.monotonic() + MEET_S
    while True:
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.connect(str(path))
        except OSError:
            peer.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            peer.sendall(json.dumps(place).encode() + b"\n")
            return peer


def _line(peer: socket.socket) -> bytes:
    """Not through a file object: that would swallow what follows."""
    found = b""
    while not found.endswith(b"\n"):
        found += bytes([_byte(peer)])
    return found


def _byte(peer: socket.socket) -> int:
    heard = peer.recv(1)
    if not heard:
        raise ConnectionError("a peer has gone")
    return heard[0]


def place_of(environ: Any) -> dict[str, Any]:
    return {
        "rank": int(environ["RANK"]),
        "size": int(environ["WORLD_SIZE"]),
        "group_rank": int(environ["GROUP_RANK"]),
        "restarts": int(environ["TORCHELASTIC_RESTART_COUNT"]),
        "world": f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}",
        "shared": environ["TORCHELASTIC_USE_AGENT_STORE"],
    }


class Voice:
    """One write a line, so that the lines of one node's workers do not mix."""

    def __init__(self, path: Path, place: dict[str, Any]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._place = place

    def say(self, event: str, **more: Any) -> None:
        said = {"event": event, "at": time.monotonic(), "pid": os.getpid(), **self._place, **more}
        os.write(self._file, json.dumps(said).encode() + b"\n")


def main(folder: Path, how: str) -> int:
    node, place = os.environ["TEST_NODE"], place_of(os.environ)
    voice = Voice(folder / f"{node}.said", place)
    voice.say("start")
    world = Gloo() if how == "gloo" else Line(folder, place) if how == "line" else Alone()
    stop, fail = folder / "stop", folder / f"fail-{node}-{place['restarts']}"
    step, said = 0, 0.0
    while not world.step(int(stop.exists())):
        step += 1
        if time.monotonic() - said > SAY_EVERY_S:
            voice.say("trains", step=step)
            said = time.monotonic()
        if fail.exists():
            return 3
        time.sleep(STEP_S)
    voice.say("done", step=step)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
