"""What a drill can be told."""

from __future__ import annotations

import argparse
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    drill: str
    rounds: int
    seed: int
    torch: bool
    version: str | None
    keep: bool

    @property
    def command(self) -> str:
        """What repeats it."""
        version = f" --etcd {self.version}" if self.version else ""
        torch = "--torch" if self.torch else "--no-torch"
        return f"python -m drills {self.drill} --rounds {self.rounds} --seed {self.seed} {torch}{version}"


def parse(drill: str, what: str, arguments: Sequence[str], *, rounds: int) -> Options:
    parser = argparse.ArgumentParser(prog=f"python -m drills {drill}", description=what)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seed", type=int, help="of who is struck, how and when; drawn if not given")
    parser.add_argument(
        "--torch",
        action=argparse.BooleanOptionalAction,
        default=importlib.util.find_spec("torch") is not None,
        help="with instep.torch.Checkpointer, or with run.checkpoint; the former where torch is installed",
    )
    parser.add_argument("--etcd", metavar="VERSION", help="of the server, such as 3.5.16; the newest at hand if not")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and saves also after success")
    found = parser.parse_args(arguments)
    if found.rounds < 1:
        parser.error("a drill of no rounds shows nothing")
    seed = random.SystemRandom().randrange(10**6) if found.seed is None else found.seed
    return Options(drill, found.rounds, seed, found.torch, found.etcd, found.keep)
