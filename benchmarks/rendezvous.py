"""How soon torchrun's agents rendezvous with Instep's backend and with c10d. `--scale-ups 50`: only that."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Collection, Sequence

from benchmarks import page
from benchmarks.figures import Figure, median
from benchmarks.load import Load
from benchmarks.rendezvous_backends import KEEP_ALIVE_ATTEMPTS, KEEP_ALIVE_S, LAST_CALL_S, Backend
from benchmarks.rendezvous_trials import (
    CROWD,
    CROWD_PROCESSES,
    HUNG_S,
    Kill,
    begin,
    crowd,
    crowd_with_load,
    form,
    reform,
    scale_up,
    together,
)
from instep.testing import EtcdServer

OURS, GUARDED, STOCK = "etcd3", "etcd3*", "c10d"
SIZES = (2, 4)
FORMING_TARGET = 0.5
REFORMING_TARGET = 1.0
SCALE_UP_TARGET_S = 2.0
CROWD_TARGET_S = 5.0
STOCK_SCALE_UPS = 2
MS = 1e3
MB = 1e6
KEEP_ALIVE = f"keep-alives of {KEEP_ALIVE_S} s, {KEEP_ALIVE_ATTEMPTS} of them, last call {LAST_CALL_S} s"


async def measure(*, quick: bool) -> list[Figure]:
    rounds, starts, scale_ups, passes = (3, 1, 2, {2: 1}) if quick else (10, 2, 5, {2: 2, 4: 1})
    with EtcdServer() as server:
        ours, stock = both = (Backend(OURS, server), Backend(STOCK))
        formed = await together(*(form(both, size, rounds) for size in SIZES))
        by_name = {OURS: ours, GUARDED: ours, STOCK: stock}
        reformed = [await reform(by_name, size, count) for size, count in passes.items()]
        grown, hung = await together(scale_up(ours, scale_ups), scale_up(stock, STOCK_SCALE_UPS))
        begun = [(await begin(ours), await begin(stock)) for _ in range(starts)]
        crowded = await crowd_with_load(ours, server)
        stock_crowded = None if quick else await crowd(stock)
    figures: list[Figure] = []
    for size, times in zip(SIZES, formed, strict=True):
        figures += _forming_figures(size, times)
    for size, kills in zip(passes, reformed, strict=True):
        figures += _reforming_figures(size, kills)
    return [
        *figures,
        *_scale_up_figures(grown, hung),
        *_start_figures(begun),
        *_crowd_figures(*crowded, stock_crowded),
    ]


def _forming_figures(size: int, times: dict[str, list[float]]) -> list[Figure]:
    ours, stock = median(times[OURS]), median(times[STOCK])
    note = f"{len(times[OURS])} times each, in turn; from the last agent's call of next_rendezvous to the last return"
    return [
        _ms(f"forming, {size} agents, etcd3: median", ours, note),
        _ms(f"forming, {size} agents, c10d: median", stock),
        Figure(measure=f"forming, {size} agents: etcd3 / c10d", value=ours / stock, target=FORMING_TARGET),
    ]


def _reforming_figures(size: int, kills: dict[str, list[Kill]]) -> list[Figure]:
    """Compares the kills that c10d survived; the others are compared with their median."""
    ended = {kill.rank for kill in kills[STOCK] if kill.took_s is None}
    ours, guarded, stock = (
        _median([_seconds(kill) for kill in kills[name] if kill.rank not in ended]) for name in (OURS, GUARDED, STOCK)
    )
    lost = [kill for kill in kills[OURS] if kill.rank in ended]
    name = f"1 of {size} nodes killed, until the survivors train"
    note = f"kills of ranks {_ranks(kills[OURS], but=ended)}; c10d: {_ranks(kills[STOCK], but=ended)}; {KEEP_ALIVE}"
    guard_note = f"kills of ranks {_ranks(kills[GUARDED], but=ended)}; the agent's guard stays alive"
    figures = [
        _s(f"{name}, etcd3: median", ours, note),
        _s(f"{name}, c10d: median", stock),
        Figure(measure=f"{name}: etcd3 / c10d", value=ours / stock, target=REFORMING_TARGET),
        Figure(
            measure="the same, only its agent and workers killed: etcd3 / c10d",
            value=guarded / stock,
            target=REFORMING_TARGET,
            note=guard_note,
        ),
    ]
    if lost:
        note = f"kills of ranks {_ranks(lost)}; c10d's run ended with its store there; target: c10d's median above"
        took_s = _median([_seconds(kill) for kill in lost])
        figures.append(_s(f"{name}, etcd3, where c10d loses the run: median", took_s, note, target=stock))
    return figures


def _scale_up_figures(ours: Sequence[float | None], stock: Sequence[float | None]) -> list[Figure]:
    times = [float("inf") if one is None else one for one in ours]
    note = f"{len(ours)} times; from the agent's start, torch loaded, to the last worker's start, minus {LAST_CALL_S} s"
    figures = [
        _s("agent added, until all workers train, minus the last call, etcd3: median", median(times), note),
        _s("the same: longest", max(times), target=SCALE_UP_TARGET_S),
    ]
    if stock:
        hung = sum(one is None for one in stock)
        note = f"of {len(stock)} tried in the same run; hung: not within {HUNG_S:g} s"
        figures.append(Figure(measure="agent added, c10d: runs that hung", value=hung, note=note))
    return figures


def _start_figures(times: Sequence[tuple[float, float]]) -> list[Figure]:
    note = f"{len(times)} times each, in turn; two processes that import torch, at once"
    return [
        _s("two torchruns started, until both workers train, etcd3: median", median([one for one, _ in times]), note),
        _s("two torchruns started, until both workers train, c10d: median", median([one for _, one in times])),
    ]


def _crowd_figures(took_s: float, load: Load, stock_s: float | None) -> list[Figure]:
    note = f"handlers, each with a thread and a connection of its own, in {CROWD_PROCESSES} processes"
    calls = load.calls
    counted = ", ".join(f"{name} {calls[name]:.0f}" for name in sorted(calls) if calls[name])
    events = load.values.get("etcd_debugging_mvcc_events_total", 0.0)
    name = f"{CROWD} agents at once"
    figures = [
        _s(f"{name}, until all have joined, etcd3", took_s, note, target=CROWD_TARGET_S),
        Figure(measure=f"{name}: requests to etcd", value=sum(calls.values()), note=counted),
        Figure(measure=f"{name}: keys written", value=load.values.get("etcd_mvcc_put_total", 0.0)),
        Figure(measure=f"{name}: events sent to watches", value=events),
        Figure(
            measure=f"{name}: sent by etcd",
            value=load.values.get("etcd_network_client_grpc_sent_bytes_total", 0.0) / MB,
            unit="MB",
        ),
        _s(f"{name}: CPU time of etcd", load.cpu_s),
    ]
    if stock_s is not None:
        figures.insert(1, _s(f"{name}, until all have joined, c10d", stock_s))
    return figures


def _seconds(kill: Kill) -> float:
    return float("inf") if kill.took_s is None else kill.took_s


def _median(values: Sequence[float]) -> float:
    return median(values) if values else float("nan")


def _ranks(kills: Sequence[Kill], but: Collection[int] = ()) -> str:
    return ", ".join(str(kill.rank) for kill in kills if kill.rank not in but)


def _s(measure: str, value_s: float, note: str = "", *, target: float | None = None) -> Figure:
    return Figure(measure=measure, value=value_s, unit="s", target=target, note=note)


def _ms(measure: str, value_s: float, note: str = "") -> Figure:
    return Figure(measure=measure, value=value_s * MS, unit="ms", note=note)


async def _only_scale_ups(count: int) -> list[Figure]:
    with EtcdServer() as server:
        times = await scale_up(Backend(OURS, server), count)
    return _scale_up_figures(times, [])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rendezvous", description=__doc__)
    parser.add_argument("--scale-ups", type=int, default=50, metavar="COUNT", help="how many; without: 50")
    figures = asyncio.run(_only_scale_ups(parser.parse_args().scale_ups))
    print(page.table(figures))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
