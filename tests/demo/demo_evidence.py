"""Evidence of a demo in which everything held, to be doctored."""

from __future__ import annotations

from instep.control import ChangeReceipt, ValueChange
from instep.demo._checks import Evidence, Pause, RefusedValue, Steered, Stop, Takeover
from instep.demo._records import BaselineRecord, RankRecord
from instep.rendezvous.records import Limits, Round

RANKS = 2
KILLED_AT = 50
LAST = 99


def _used(first: int, last: int, changed_at: int) -> dict[int, dict[str, float]]:
    return {step: {"lr": 1e-3 if step >= changed_at else 3e-3, "clip": 1.0} for step in range(first, last + 1)}


def killed(rank: int, *, changed_at: int = 40, finished: bool = False) -> RankRecord:
    """Until the accident: rank 0 was killed in mid-save, the others saw it committed."""
    saved = {} if rank == 0 and not finished else {KILLED_AT: "s50"}
    return RankRecord(rank, 1, 0, "s0", _used(0, KILLED_AT, changed_at), saved)


def gone_on(
    rank: int,
    *,
    sha256: str = "aa",
    start: int = KILLED_AT + 1,
    restored: str = "s50",
    last: int = LAST,
    grpc: bool = False,
    thread: str = "",
) -> RankRecord:
    return RankRecord(
        rank,
        2,
        start,
        restored,
        _used(start, last, 40),
        {last: sha256},
        end=sha256,
        stopped="stopped by rank 1: SIGTERM",
        grpc=grpc,
        threads=("MainThread", *([thread] if thread else [])),
    )


def formed(number: int, *, restarts: int) -> Round:
    return Round(epoch=1, number=number, limits=Limits(min_nodes=1, max_nodes=1), restarts=restarts)


def alone(rank: int, *, sha256: str, difference: float, before: str = "start") -> BaselineRecord:
    return BaselineRecord(rank, ((0, 3e-3), (20 + 5 * rank, 1e-3)), before, sha256, difference)


def receipt(*, step: int = 40, applied: int = RANKS) -> ChangeReceipt:
    return ChangeReceipt(
        outcome="applied",
        changes=(ValueChange("lr", 3e-3, 1e-3),),
        plan=1,
        attempts=1,
        step=step,
        armed=RANKS,
        applied=applied,
        ranks=RANKS,
        view=1,
        took_s=0.2,
        sentence="",
    )


def evidence() -> Evidence:
    return Evidence(
        ranks=RANKS,
        records=(killed(0), killed(1), gone_on(0), gone_on(1)),
        steered=(Steered("instep set", receipt()),),
        refusal=RefusedValue("lr=-1", "it must be above 0", "0.001", "0.001", written=False),
        round=formed(2, restarts=1),
        takeover=Takeover(step=KILLED_AT, killed_rank=0, by_rank=1, took_ms=12.0, saved_by=1),
        pause=Pause(step=70, stood_s=1.5),
        stop=Stop(rank=1, checkpoint=LAST, code=0, took_s=0.4),
        baseline=(alone(0, sha256="bb", difference=0.0), alone(1, sha256="cc", difference=1e-3)),
        baseline_lr=1e-3,
    )
