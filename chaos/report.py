"""What a session did and found: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from chaos.checks.run_history import RunHistory, is_plan
from chaos.checks.verdicts import Finding, longest_boundary_s
from chaos.fault_plan import KINDS
from chaos.prober import Recovery, calls_succeed_after, planned_after, watch_resumes_after
from chaos.recording import read_event_log
from chaos.testbed import Testbed

LEAST_AN_HOUR = {
    "changes committed": 1000,
    "members killed or stopped": 100,
    "agents killed": 50,
    "workers killed": 200,
}
PLANNED = "changes planned after: leader's agent and supervisor killed"
MEDIAN_S = {
    PLANNED: 3.0,
    "calls succeed after: member killed": 2.0,
    "watch resumes after: member killed": 1.0,
    "calls succeed after: member frozen": 4.0,
    "watch resumes after: member frozen": 4.0,
    "calls succeed after: member isolated": 4.0,
    "watch resumes after: member isolated": 4.0,
}
"""Of a watch: later than the success of the first put after the fault. Of plans: other faults may begin before."""
ENOUGH_FOR_A_MEDIAN = 10
PROPORTION_FROM_S = 600.0
"""From this duration on, the least counts of an hour must be reached in proportion."""
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Report:
    seed: int
    duration_s: float
    etcd: str
    counts: dict[str, int]
    faults: dict[str, int]
    figures_s: dict[str, float]
    recoveries: dict[str, Recovery]
    findings: list[Finding]
    failure: str | None = None
    missed: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.failure is None and not self.missed and all(finding.held for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        return {"passed": self.passed, **asdict(self)}

    def table(self) -> str:
        rows = [*((name, str(count)) for name, count in {**self.counts, **self.faults}.items())]
        rows += [(name, f"{figure:.2f} s") for name, figure in self.figures_s.items()]
        rows += [
            (name, f"{found.median_s:.2f} s at the median of {found.faults}, {found.longest_s:.2f} s at most")
            for name, found in self.recoveries.items()
        ]
        lines = [f"seed {self.seed}, {self.duration_s:g} s, etcd {self.etcd}"]
        lines += [f"  {name:<44} {value}" for name, value in rows]
        lines += [str(finding) for finding in self.findings]
        lines += [f"TOO FEW {missed}" for missed in self.missed]
        if self.failure is not None:
            lines.append(f"FAILED  {self.failure}")
        return "\n".join(lines)


def counts_of(testbed: Testbed, history: RunHistory) -> dict[str, int]:
    injector, ranks = testbed.injector, testbed.ranks
    return {
        "changes committed": history.commits,
        "changes asked for": testbed.operator.puts,
        "commands asked for": testbed.operator.commands,
        "plans aborted": history.aborts,
        "values rejected": history.rejections,
        "members killed or stopped": testbed.servers.kills_and_stops,
        "agents killed": injector.agent_kills,
        "workers killed": injector.worker_kills,
        "worker processes killed": ranks.kills,
        "steps": ranks.shared.lowest_arrived() + 1,
        "views": history.views,
        "terms of leaders": history.terms,
        "fresh starts of all ranks": ranks.epoch - 1,
        "of them for a collective's timeout": testbed.monitor.collective_timeouts,
        "calls of clients": testbed.calls.count,
        "calls that failed": testbed.calls.failures,
        "resumes of the watch": testbed.watcher.resumes,
    }


def figures_of(testbed: Testbed) -> dict[str, float]:
    clock = testbed.monitor.clock
    return {
        "longest stall": clock.longest_s,
        "longest stall without a fault": clock.longest_unexplained_s,
        "faults suspended": testbed.monitor.suspended_s,
        "longest boundary, pauses included": longest_boundary_s(testbed),
        "longest lag of the clients' loop": testbed.calls.longest_lag_s,
    }


def recoveries_of(testbed: Testbed) -> dict[str, Recovery]:
    prober, found = testbed.prober, {}
    for kind in ("member killed", "member frozen", "member isolated"):
        outages = [outage for outage in testbed.servers.outages if outage.kind == kind]
        found[f"calls succeed after: {kind}"] = Recovery.of(calls_succeed_after(outages, prober.successes))
        delays = watch_resumes_after(outages, prober.puts, testbed.watcher.heard)
        found[f"watch resumes after: {kind}"] = Recovery.of(delays)
    found[PLANNED] = Recovery.of(planned_after(testbed.injector.leaders_lost, _plans(testbed)))
    return found


def _plans(testbed: Testbed) -> list[float]:
    """When the watch heard of each plan (monotonic seconds)."""
    return [
        at
        for at, batch in read_event_log(testbed.folder / "watched.jsonl")
        if any(event.kind == "put" and is_plan(event.kv.key) for event in batch.events)
    ]


def slow_recoveries(recoveries: Mapping[str, Recovery]) -> Finding:
    """Compares medians with the promised times, if there were enough faults."""
    problems = [
        f"{name}: {found.median_s:.2f} s at the median of {found.faults}, promised are {MEDIAN_S[name]:g} s"
        for name, found in recoveries.items()
        if found.faults >= ENOUGH_FOR_A_MEDIAN and found.median_s > MEDIAN_S[name]
    ]
    faults = sum(found.faults for found in recoveries.values())
    return Finding("Clients recover in the time promised", f"{faults} recoveries", tuple(problems))


def too_few(counts: dict[str, int], duration_s: float) -> list[str]:
    """What a session of this duration did too rarely."""
    if duration_s < PROPORTION_FROM_S:
        return []
    wanted = {name: int(least * duration_s / HOUR_S) for name, least in LEAST_AN_HOUR.items()}
    return [f"{name}: {counts[name]} of {least}" for name, least in wanted.items() if counts[name] < least]


def faults_of(testbed: Testbed) -> dict[str, int]:
    done, missed = testbed.injector.done, testbed.injector.missed
    return {
        **{f"fault: {kind}": done[kind] for kind in sorted(kind.name for kind in KINDS)},
        **{f"nothing to break: {kind}": count for kind, count in sorted(missed.items())},
    }
