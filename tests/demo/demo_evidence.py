"""Evidence of a demo in which everything held, to be doctored."""

from __future__ import annotations

from instep.control import ChangeReceipt, ValueChange
from instep.demo._checks import Evidence, Steered
from instep.demo._operator import Refusal
from instep.demo._proof import RankProof

RANKS = 2
STEPS = 100


def trained(rank: int, *, changed_at: int = 40, sha256: str = "aa", grpc: bool = False, thread: str = "") -> RankProof:
    return RankProof(
        rank=rank,
        steps=STEPS,
        used=((0, {"lr": 3e-3, "clip": 1.0}), (changed_at, {"lr": 1e-3, "clip": 1.0})),
        sha256=sha256,
        grpc=grpc,
        threads=("MainThread", *([thread] if thread else [])),
    )


def alone(rank: int, *, sha256: str, difference: float, before: str = "start") -> RankProof:
    used = ((0, {"lr": 3e-3}), (20 + 5 * rank, {"lr": 1e-3}))
    more = {"before": before, "difference": difference}
    return RankProof(rank, 60, used, sha256, grpc=False, threads=("MainThread",), more=more)


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
        steps=STEPS,
        trained=(trained(0), trained(1)),
        steered=(Steered("instep set", receipt()),),
        refusal=Refusal("lr=-1", "it must be above 0", "0.001", "0.001", written=False),
        alone=(alone(0, sha256="bb", difference=0.0), alone(1, sha256="cc", difference=1e-3)),
        alone_lr=1e-3,
    )
