"""The second part of chaos: etcd's history repeatedly goes back while a run trains.

One etcd server, the same nodes and ranks, and no other clients, because their answers are lost with the history, as are
desired values and commands. What the workers hold is not lost: no step has two configs, changes are agreed on again,
and every checkpoint that etcd has lost is restored from its directory.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from chaos.checks.registry import broken_files
from chaos.checks.steps import read_runs
from chaos.checks.verdicts import Finding, one_config_a_step
from chaos.fault_plan import RANKS_PER_NODE, WORLD_SIZE
from chaos.harness.ranks import CHECKPOINTS
from chaos.harness.shared_state import Field
from chaos.harness.tasks import until, until_async
from chaos.operator import FINAL, RUN, keys_of
from chaos.options import Failed, failure_of, say
from chaos.report import Report
from chaos.run_processes import make_nodes, make_ranks
from chaos.testbed import NAMESPACE
from instep.errors import EtcdError
from instep.etcd import Client, Op
from instep.protocol.records import Command, Manifest, Pointer
from instep.scalar import Scalar
from instep.testing import EtcdServer

LIMIT_S = 60.0
"""Within this time after a fault, the run trains, takes changes and lists its checkpoints again, also under load."""
AGAIN_S = 2.0
"""A change that was put while the history went back may be lost, so it is put again."""
STEPS_ON = 25
MARGIN_STEPS = 40
END_TIMEOUT_S = 30.0
CLIENT_TIMEOUT_S = 5.0
JUNK = 300
"""How many revisions a restored store grows by before the run sees it again: more than a round adds."""


class RestoreKind(StrEnum):
    """What happens to the history."""

    BACK = "restored from an older snapshot"
    ANOTHER = "restored as another cluster"
    GROWN = "restored and grown past the old revision"
    WIPED = "wiped"


class Victim(StrEnum):
    """What else is hit at the same time."""

    NOBODY = "nobody"
    AGENT = "an agent"
    AGENTS = "all agents with their supervisors"
    RANK = "a rank"
    RANK_AND_AGENT = "a rank and its agent"
    FROZEN = "an agent, frozen"


@dataclass(frozen=True, slots=True)
class Round:
    """How the history goes back once.

    `open_plan`: the snapshot is taken while a change is under way; `interrupted`: it goes back while another one is.
    """

    kind: RestoreKind
    victim: Victim
    target: int
    changes: int
    open_plan: bool
    interrupted: bool

    def __str__(self) -> str:
        return f"{self.kind}; hit: {self.victim} ({self.target}), {self.changes} changes lost"


def rounds(seed: int) -> Iterator[Round]:
    """An endless sequence. Kinds are shuffled in decks: even a few rounds include every kind."""
    chance = random.Random(seed)
    while True:
        kinds, victims = [*RestoreKind, RestoreKind.BACK, RestoreKind.GROWN], list(Victim)
        chance.shuffle(kinds)
        chance.shuffle(victims)
        for kind, victim in zip(kinds, victims, strict=True):
            target, changes = chance.randrange(WORLD_SIZE), chance.randrange(1, 4)
            open_plan, interrupted = chance.random() < 0.5, chance.random() < 0.5
            # A stated limit (docs/decisions/0016): ranks at a gate wait for a node without an agent.
            yield Round(kind, victim, target, changes, open_plan, interrupted and victim is not Victim.AGENTS)


class RestoreSession:
    """As many rounds as fit into `duration_s`, and at least one. Use it in a `with` block: `run`, then `check`."""

    def __init__(self, folder: Path, server: EtcdServer, seed: int, duration_s: float) -> None:
        self.done: Counter[RestoreKind] = Counter()
        self.hit: Counter[Victim] = Counter()
        self.slowest_s: dict[str, float] = {}
        self._folder = folder
        self._server = server
        self._seed = seed
        self._duration_s = duration_s
        self._keys = keys_of(NAMESPACE)
        self._nodes = make_nodes(folder, server.endpoints, NAMESPACE)
        self._ranks = make_ranks(folder, self._nodes)
        self._puts = 0

    def __repr__(self) -> str:
        return f"RestoreSession({sum(self.done.values())} rounds, {self._ranks!r})"

    async def run(self) -> None:
        """Raises Failed."""
        until_s = time.monotonic() + self._duration_s
        self._ranks.start(range(WORLD_SIZE))
        await self._must(lambda: self._ranks.shared.lowest_arrived() >= 0, "the run to start")
        for number, item in enumerate(rounds(self._seed), start=1):
            say(f"round {number}: {item}")
            await self._round(item)
            self.done[item.kind] += 1
            self.hit[item.victim] += 1
            if time.monotonic() >= until_s:
                break
        await self._change(FINAL)
        await self._end()

    async def _round(self, item: Round) -> None:
        await self._change(self._values())
        if item.open_plan:
            await self._put(self._values())
        snapshot = await asyncio.to_thread(self._server.snapshot)
        for _ in range(item.changes):
            await self._change(self._values())
        newest = await self._checkpoint()
        if item.interrupted:
            await self._put(self._values())
        began = time.monotonic()
        with self._hit(item):
            await asyncio.to_thread(self._go_back, item.kind, snapshot)
        await self._trains()
        self._took("trains on", began)
        await self._change(self._values())
        self._took("takes changes again", began)
        await self._adopt()
        await self._must_async(lambda: self._lists(newest), f"checkpoint {newest} to be listed again")

    def _go_back(self, kind: RestoreKind, snapshot: Path) -> None:
        if kind is RestoreKind.WIPED:
            self._server.wipe()
            return
        self._server.restore(snapshot, another_cluster=kind is RestoreKind.ANOTHER)
        if kind is RestoreKind.GROWN:
            for number in range(JUNK // 100):
                asyncio.run(_grow(self._server.endpoints, number))

    @contextmanager
    def _hit(self, item: Round) -> Iterator[None]:
        """Kills before the history goes back: the replacements see only the result."""
        node = self._nodes[item.target // RANKS_PER_NODE]
        frozen = None
        match item.victim:
            case Victim.AGENT:
                node.signal_agent(signal.SIGKILL)
            case Victim.AGENTS:
                for one in self._nodes:
                    one.kill_agent_and_supervisor()
            case Victim.RANK:
                self._ranks.kill([item.target])
            case Victim.RANK_AND_AGENT:
                node.kill_agent_and_supervisor()
                self._ranks.kill([item.target])
            case Victim.FROZEN:
                frozen = node.signal_agent(signal.SIGSTOP)
        yield
        if item.victim in (Victim.RANK, Victim.RANK_AND_AGENT):
            self._ranks.start([item.target])
        if frozen is not None:
            node.signal_agent(signal.SIGCONT, frozen)

    # -- what must come of it -----------------------------------------------------------------------------------------

    async def _trains(self) -> None:
        shared = self._ranks.shared
        goal = shared.highest_passed() + STEPS_ON
        await self._must(lambda: shared.lowest_arrived() >= goal, f"step {goal}")

    async def _change(self, values: dict[str, Scalar] | Any) -> None:
        """Puts the values until all ranks run with them: desired values go back with the history."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            await self._put(values)
            if await until(lambda: self._all_run(values), AGAIN_S):
                return
            self._check_alive()
        raise Failed(f"not in {LIMIT_S:g} s: the change to {dict(values)}\n{self._story()}")

    def _all_run(self, values: dict[str, Scalar]) -> bool:
        return all(
            (found := self._last_said(rank, "runs")) is not None
            and all(found["values"].get(name) == value for name, value in values.items())
            for rank in range(WORLD_SIZE)
        )

    async def _checkpoint(self) -> str:
        """Asks for a checkpoint, and returns its id once a rank knows that it is committed."""
        known = len(self._committed())
        command = Command(kind="checkpoint")
        async with Client(self._server.endpoints, timeout_s=CLIENT_TIMEOUT_S) as client:
            await client.put(self._keys.command(f"history-{self._puts}-{known}"), command.encode())
        await self._must(lambda: len(self._committed()) > known, "a checkpoint to be committed")
        return self._committed()[-1]

    async def _adopt(self) -> None:
        """Runs `instep adopt`, which is needed because the script has no Checkpointer."""
        command = [sys.executable, "-P", "-m", "instep", "adopt", RUN, str(self._folder / CHECKPOINTS)]
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self._nodes[0].environment(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        if process.returncode != 0:
            raise Failed(f"instep adopt ended with {process.returncode}: {said.decode()}\n{self._story()}")

    async def _lists(self, newest: str) -> bool:
        try:
            manifests, latest = await self._registry()
        except EtcdError:
            return False
        return latest == newest and any(item.id == newest for item in manifests)

    async def _registry(self) -> tuple[list[Manifest], str | None]:
        async with Client(self._server.endpoints, timeout_s=CLIENT_TIMEOUT_S) as client:
            found = (await client.range(self._keys.checkpoints)).kvs
        manifests = [Manifest.decode(kv.value) for kv in found if kv.key != self._keys.latest]
        pointers = [Pointer.decode(kv.value).id for kv in found if kv.key == self._keys.latest]
        return manifests, pointers[0] if pointers else None

    async def _end(self) -> None:
        ranks = self._ranks
        ranks.shared.end_after(ranks.shared.highest_passed() + MARGIN_STEPS)
        if not await until(lambda: len(ranks.ended()) == WORLD_SIZE, END_TIMEOUT_S) or any(ranks.ended().values()):
            raise Failed(f"the ranks did not end in order: {ranks.ended()}\n{self._story()}")

    def keep_evidence(self) -> None:
        """Saves what etcd holds after a failure, beside the logs of ranks and agents."""
        held = self._server.etcdctl("get", "--prefix", NAMESPACE, check=False)
        (self._folder / "etcd.txt").write_text(held)

    # -- verdicts -----------------------------------------------------------------------------------------------------

    async def check(self) -> list[Finding]:
        ranks = self._ranks
        runs = [run for rank in range(WORLD_SIZE) for run in read_runs(ranks.records(rank), ranks.lives(rank))]
        return [one_config_a_step(runs), await self._checkpoints()]

    async def _checkpoints(self) -> Finding:
        committed = self._committed()
        manifests, latest = await self._registry()
        problems = broken_files(still_kept(manifests, self._every_said("saved")))
        if committed and latest != committed[-1]:
            problems.append(f"{committed[-1]} was committed last, and a restart resumes from {latest}")
        return Finding("No checkpoint is lost", f"{len(committed)} committed", tuple(problems))

    # -- inside ----------------------------------------------------------------------------------------------

    def _values(self) -> dict[str, Scalar]:
        """Values that are never repeated."""
        self._puts += 1
        return {"lr": round(self._puts / 100_000, 9), "batch_size": self._puts}

    async def _put(self, values: dict[str, Scalar]) -> None:
        puts = [Op.put(self._keys.config_of(name), json.dumps(value)) for name, value in values.items()]
        try:
            async with Client(self._server.endpoints, timeout_s=CLIENT_TIMEOUT_S) as client:
                await client.txn([], puts)
        except EtcdError as error:
            say(f"a put was not answered: {error}")

    def _every_said(self, event: str) -> list[dict[str, Any]]:
        return [line for rank in range(WORLD_SIZE) for line in self._ranks.said(rank, event)]

    def _last_said(self, rank: int, event: str) -> dict[str, Any] | None:
        """By the present process of that rank."""
        said = [
            line for line in self._ranks.said(rank, event) if line["life"] == self._ranks.shared.get(rank, Field.LIFE)
        ]
        return said[-1] if said else None

    def _committed(self) -> list[str]:
        """Ids of the checkpoints that a rank knows to be committed, in order."""
        found = [line for line in self._every_said("saved") if line["outcome"] == "committed"]
        return [str(line["id"]) for line in sorted(found, key=lambda line: float(line["at"]))]

    def _took(self, what: str, began: float) -> None:
        self.slowest_s[what] = max(self.slowest_s.get(what, 0.0), time.monotonic() - began)

    async def _must(self, condition: Callable[[], bool], what: str) -> None:
        async def look() -> bool:
            self._check_alive()
            return condition()

        await self._must_async(look, what)

    async def _must_async(self, condition: Callable[[], Any], what: str) -> None:
        if not await until_async(condition, LIMIT_S):
            raise Failed(f"not in {LIMIT_S:g} s: {what}\n{self._story()}")

    def _check_alive(self) -> None:
        if ended := self._ranks.ended():
            raise Failed(f"ranks ended with {ended}\n{self._story()}")

    def _story(self) -> str:
        self._ranks.print_stacks()
        parts = [repr(self._ranks)]
        parts += [f"--- rank {rank}\n{self._ranks.log_tail(rank)}" for rank in range(WORLD_SIZE)]
        parts += [f"--- agent of node {node!r}\n{node.log_tail()}" for node in self._nodes]
        return "\n".join(parts)

    def __enter__(self) -> RestoreSession:
        return self

    def __exit__(self, *error: object) -> None:
        self._ranks.close()
        for node in self._nodes:
            node.close()


def still_kept(manifests: Iterable[Manifest], saved: Iterable[Mapping[str, Any]]) -> list[Manifest]:
    """Without checkpoints that a rank deleted: a backup restores their records, but not their files."""
    deleted = {name for line in saved for name in line.get("forgotten", ())}
    return [manifest for manifest in manifests if manifest.id not in deleted]


async def _grow(endpoints: list[str], number: int) -> None:
    async with Client(endpoints, timeout_s=CLIENT_TIMEOUT_S) as client:
        for _ in range(100):
            await client.put(f"/junk/{number}", "x")


async def perform(folder: Path, *, seed: int, duration_s: float, version: str | None) -> Report:
    """A session and its verdicts."""
    failure: str | None = None
    findings: list[Finding] = []
    with EtcdServer(version=version) as server, RestoreSession(folder, server, seed, duration_s) as session:
        try:
            await session.run()
        except Exception as error:  # noqa: BLE001  # no error may pass for success
            failure = failure_of(error)
        if failure is not None:
            session.keep_evidence()
        try:
            findings = await session.check()
        except Exception:  # noqa: BLE001  # the rest of the report is still wanted
            findings = [Finding("The histories can be checked", "all of them", (traceback.format_exc(),))]
        return Report(
            seed=seed,
            duration_s=duration_s,
            etcd=server.version,
            counts={"rounds in which the history went back": sum(session.done.values())},
            faults={
                **{f"history {kind}": session.done[kind] for kind in RestoreKind},
                **{f"hit at the same time: {victim}": session.hit[victim] for victim in Victim},
            },
            figures_s={f"slowest: {what}": took_s for what, took_s in session.slowest_s.items()},
            recoveries={},
            findings=findings,
            failure=failure,
        )
