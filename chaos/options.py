"""What `python -m chaos` can be told."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """`duration_s` counts from the start of the ranks to the mending of the last fault."""

    seed: int
    duration_s: float
    version: str | None
    json: Path | None
    keep: bool

    @property
    def command(self) -> str:
        """What repeats this session."""
        version = f" ETCD={self.version}" if self.version else ""
        return f"make chaos SEED={self.seed} DURATION_S={self.duration_s:g}{version}"


def parse(arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="breaks a real run in every way; see chaos/")
    parser.add_argument("--seed", type=int, help="of the faults and the changes; drawn if not given")
    parser.add_argument("--duration-s", type=float, default=600.0, help="seconds of faults")
    parser.add_argument("--etcd", metavar="VERSION", help="of the servers, such as 3.5.16; the newest at hand if not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the histories also after success")
    found = parser.parse_args(arguments)
    if found.duration_s < 10:
        parser.error("a session of less than 10 s shows nothing")
    seed = random.SystemRandom().randrange(10**6) if found.seed is None else found.seed
    return Options(seed, found.duration_s, found.etcd, found.json, found.keep)
