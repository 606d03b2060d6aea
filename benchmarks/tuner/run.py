"""`python -m benchmarks.tuner`: draws fresh seeds, runs all trials, prints the results; 1 if a promise was not kept."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.tuner.faults import FAULTS
from benchmarks.tuner.healthy import HEALTHY
from benchmarks.tuner.report import Results, text
from benchmarks.tuner.simulation import Pace
from benchmarks.tuner.trials import FaultTrial, HealthyTrial, fault_trials, healthy_trial

TUNING_SEEDS = range(1000, 2000)
"""The thresholds were chosen with these. Fresh seeds are never among them."""
ABOUT = {case.name: case.about for case in (*FAULTS, FAULTS[0].twin, *HEALTHY)}


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does in one go: all `faults` with one seed, or one healthy run."""

    seed: int
    faults: tuple[str, ...]
    kind: str
    pace: Pace

    def do(self) -> list[FaultTrial | HealthyTrial]:
        torch.set_num_threads(1)
        if self.kind:
            return [healthy_trial(self.seed, next(case for case in HEALTHY if case.name == self.kind), self.pace)]
        return list(fault_trials(self.seed, [case for case in FAULTS if case.name in self.faults], self.pace))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    master = options.seed if options.seed is not None else secrets.randbelow(2**31)
    print(f"seed {master} (--seed {master} repeats this on the same machine)", flush=True)
    jobs = list(_jobs(options, master))
    began, trials = time.monotonic(), []
    for done in _results(jobs, options.processes):
        trials += done
        if sys.stderr.isatty():
            print(f"\r{len(trials)} runs, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
    results = Results(
        master,
        options.step_time,
        time.monotonic() - began,
        tuple(trial for trial in trials if isinstance(trial, FaultTrial)),
        tuple(trial for trial in trials if isinstance(trial, HealthyTrial)),
    )
    print(text(results, ABOUT))
    if options.json is not None:
        options.json.write_text(json.dumps(results.document(), indent=1) + "\n")
    return 1 if results.shortfalls else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuner", description=__doc__)
    parser.add_argument("--seeds", type=int, default=25, help="seeds for each fault")
    parser.add_argument("--healthy", type=int, default=208, help="healthy runs, of all kinds together")
    parser.add_argument("--faults", nargs="*", default=[case.name for case in FAULTS], metavar="NAME")
    parser.add_argument("--kinds", nargs="*", default=[case.name for case in HEALTHY], metavar="NAME")
    parser.add_argument("--seed", type=int, help="instead of a fresh one; the seeds of all runs are drawn from it")
    parser.add_argument("--tuning", action="store_true", help="use the seeds that thresholds may be chosen with")
    parser.add_argument("--step-time", type=float, default=Pace().step_time_s, metavar="S", help="simulated")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="each uses one core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all trials there")
    options = parser.parse_args(arguments)
    unknown = {*options.faults, *options.kinds} - set(ABOUT)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ABOUT)}")
    return options


def _jobs(options: argparse.Namespace, master: int) -> Iterator[Job]:
    dice, pace = random.Random(master), Pace(options.step_time)
    fresh = range(TUNING_SEEDS.stop, 2**31)
    drawn = dice.sample(TUNING_SEEDS if options.tuning else fresh, options.seeds + options.healthy)
    if options.faults:
        yield from (Job(seed, tuple(options.faults), "", pace) for seed in drawn[: options.seeds])
    for number, seed in enumerate(drawn[options.seeds :] if options.kinds else ()):
        yield Job(seed, (), options.kinds[number % len(options.kinds)], pace)


def _results(jobs: Sequence[Job], processes: int) -> Iterator[list[FaultTrial | HealthyTrial]]:
    if processes == 1:
        yield from map(Job.do, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(Job.do, jobs)
