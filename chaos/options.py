"""The options of `python -m chaos`, and of `python -m chaos drill NAME`."""

from __future__ import annotations

import argparse
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HISTORY_SHARE = 1 / 6
HISTORY_FROM_S = 600.0


@dataclass(frozen=True, slots=True)
class Options:
    """`duration_s` counts from the start of the ranks to the end of the last fault, of both parts together."""

    seed: int
    duration_s: float
    only: str | None
    version: str | None
    json: Path | None
    keep: bool

    @property
    def history_s(self) -> float:
        """The part in which etcd's history goes back: none of a short session, unless that is all it does."""
        if self.only == "history":
            return self.duration_s
        return 0.0 if self.only or self.duration_s < HISTORY_FROM_S else self.duration_s * HISTORY_SHARE

    @property
    def faults_s(self) -> float:
        """The part with all other faults."""
        return self.duration_s - self.history_s

    @property
    def command(self) -> str:
        """What repeats this session."""
        version = f" ETCD={self.version}" if self.version else ""
        only = f" CHAOS_ARGS='--only {self.only}'" if self.only else ""
        return f"make chaos SEED={self.seed} DURATION_S={self.duration_s:g}{version}{only}"


def parse(arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="breaks a real run in every way; see chaos/")
    parser.add_argument("--seed", type=int, help="of the faults and the changes; drawn if not given")
    parser.add_argument("--duration-s", type=float, default=600.0, help="seconds of faults")
    parser.add_argument(
        "--only",
        choices=("faults", "history"),
        help="one part: faults on a cluster, or a history that goes back; both in a session of 10 minutes or more",
    )
    parser.add_argument("--etcd", metavar="VERSION", help="of the servers, such as 3.5.16; the newest at hand if not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the histories also after success")
    found = parser.parse_args(arguments)
    if found.duration_s < 10:
        parser.error("a session of less than 10 s shows nothing")
    seed = random.SystemRandom().randrange(10**6) if found.seed is None else found.seed
    return Options(seed, found.duration_s, found.only, found.etcd, found.json, found.keep)


@dataclass(frozen=True, slots=True)
class DrillOptions:
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
        return f"python -m chaos drill {self.drill} --rounds {self.rounds} --seed {self.seed} {torch}{version}"


def parse_drill(drill: str, what: str, arguments: Sequence[str], *, rounds: int) -> DrillOptions:
    parser = argparse.ArgumentParser(prog=f"python -m chaos drill {drill}", description=what)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seed", type=int, help="of which rank is hit, how and when; drawn if not given")
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
    return DrillOptions(drill, found.rounds, seed, found.torch, found.etcd, found.keep)
