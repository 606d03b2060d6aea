"""The options of `python -m chaos` and of `python -m chaos drill NAME`, and how both end."""

from __future__ import annotations

import argparse
import importlib.util
import random
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HISTORY_SHARE = 1 / 6
HISTORY_FROM_S = 600.0


class Failed(Exception):
    """A promise was broken, or a session or drill could not be completed: a finding, not an error of chaos itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What a session of random faults and a drill have in common."""

    seed: int
    version: str | None
    keep: bool

    @property
    def command(self) -> str:
        """Repeats it."""
        raise NotImplementedError

    def conclude(self, folder: Path, *, passed: bool) -> int:
        """The exit code. Removes the folder after success, unless it is to be kept; says how to repeat a failure."""
        if not passed:
            say(f"failed. Repeat: {self.command}\nHistories, logs and saves: {folder}")
        elif not self.keep:
            shutil.rmtree(folder)
        return 0 if passed else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Common):
    """`duration_s` counts from the start of the ranks to the end of the last fault, of both parts together."""

    duration_s: float
    only: str | None
    json: Path | None

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
        version = f" ETCD={self.version}" if self.version else ""
        only = f" CHAOS_ARGS='--only {self.only}'" if self.only else ""
        return f"make chaos SEED={self.seed} DURATION_S={self.duration_s:g}{version}{only}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillOptions(Common):
    drill: str
    rounds: int
    torch: bool

    @property
    def command(self) -> str:
        version = f" --etcd {self.version}" if self.version else ""
        torch = "--torch" if self.torch else "--no-torch"
        return f"python -m chaos drill {self.drill} --rounds {self.rounds} --seed {self.seed} {torch}{version}"


def parse(arguments: Sequence[str] | None = None) -> Options:
    parser = _parser("python -m chaos", "breaks a real run in many ways; see chaos/")
    parser.add_argument("--duration-s", type=float, default=600.0, help="seconds of faults")
    parser.add_argument(
        "--only",
        choices=("faults", "history"),
        help="one part: faults on a cluster, or a history that goes back; both in a session of 10 minutes or more",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as JSON")
    found = parser.parse_args(arguments)
    if found.duration_s < 10:
        parser.error("--duration-s is at least 10")
    return Options(duration_s=found.duration_s, only=found.only, json=found.json, **_common(found))


def parse_drill(drill: str, description: str, arguments: Sequence[str], *, rounds: int) -> DrillOptions:
    parser = _parser(f"python -m chaos drill {drill}", description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"number of rounds: {rounds} by default")
    parser.add_argument(
        "--torch",
        action=argparse.BooleanOptionalAction,
        default=importlib.util.find_spec("torch") is not None,
        help="save with instep.torch.Checkpointer, or with run.checkpoint; the former by default if torch is installed",
    )
    found = parser.parse_args(arguments)
    if found.rounds < 1:
        parser.error("--rounds is at least 1")
    return DrillOptions(drill=drill, rounds=found.rounds, torch=found.torch, **_common(found))


def failure_of(error: Exception) -> str:
    """The text of a finding; the traceback of any other error."""
    return str(error) if isinstance(error, Failed) else "".join(traceback.format_exception(error))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--seed", type=int, help="of what is broken, how and when; random by default")
    parser.add_argument("--etcd", metavar="VERSION", help="of the servers, such as 3.5.16; the newest found by default")
    parser.add_argument(
        "--keep", action="store_true", help="keep the folder of histories, logs and saves after success"
    )
    return parser


def _common(found: argparse.Namespace) -> dict[str, Any]:
    seed = random.SystemRandom().randrange(10**6) if found.seed is None else found.seed
    return {"seed": seed, "version": found.etcd, "keep": found.keep}
