"""The demo, step by step: train, steer, kill and stop with Instep, then the same training without it.

`run_demo` is the command: exit code, interrupts, JSON document.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Final

from rich.console import Console

from instep.control import ChangeReceipt, Keys, connect, format_changes
from instep.demo._checks import Check, Evidence, Pause, Steered, Stop, Takeover, check
from instep.demo._environment import RUN, SCRIPT, Sandbox, check_needs, training_script
from instep.demo._operator import DemoOperator
from instep.demo._records import BaselineRecord, read_baseline, read_records
from instep.demo._screen import DemoProgress, Screen
from instep.errors import InstepError, SettingsError
from instep.etcd import Client
from instep.etcd_server.process import ServerProcess
from instep.protocol.records import Pointer
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Round
from instep.tasks import all_of

BASELINE_STEPS: Final = 60
BASELINE_KEY: Final = "/without-instep/lr"
BASELINE_LR: Final = 1e-3
UNENDING_STEPS: Final = 1_000_000_000
MAX_RESTARTS: Final = 2
SLOW_DISK_S: Final = 0.7
"""Added to each save: a fast disk would finish before the saver could be killed."""
PAUSE_S: Final = 1.5
MAX_RANKS: Final = 64
MAX_STEPS: Final = 10_000
END_S: Final = 8.0
"""torchrun first stops its workers after a SIGTERM."""
_TAIL_LINES: Final = 25
_PIPED_WIDTH: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Raises SettingsError for values that a demo cannot work with."""

    steps: int
    """Steps of training between two actions."""
    ranks: int
    keep: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise SettingsError(f"--steps is {self.steps}: give 1 to {MAX_STEPS} steps between two actions")
        if not 2 <= self.ranks <= MAX_RANKS:
            raise SettingsError(
                f"--ranks is {self.ranks}: give 2 to {MAX_RANKS}, for one rank cannot drift from itself"
            )


@dataclass(slots=True)
class Scenario:
    """One demo. `kept`: the changes are made, and the user controls the training now."""

    options: DemoOptions
    sandbox: Sandbox
    screen: Screen
    kept: bool = False

    async def run(self) -> Evidence | None:
        """Runs the demo. Returns None if the user took over the training and stopped it."""
        options, screen = self.options, self.screen
        screen.title("instep demo", f"{options.ranks} ranks train one model; an operator changes it live")
        screen.heading("a real etcd", f"{self.sandbox.etcd.version} at {self.sandbox.endpoint}, only for this demo")
        async with connect(self.sandbox.settings) as client:
            evidence = await self._with_instep(client)
            if evidence is None:
                return None
            alone = await self._without_instep(client)
        return replace(evidence, records=read_records(self.sandbox.subfolder("trained")), baseline=alone)

    async def _with_instep(self, client: Client) -> Evidence | None:
        options, sandbox = self.options, self.sandbox
        keys = Keys(sandbox.settings.namespace, RUN)
        command = f"torchrun --rdzv-backend=etcd3 --rdzv-id={RUN} --nproc-per-node={options.ranks} examples/{SCRIPT}"
        self.screen.heading("training with Instep", command)
        progress = DemoProgress(client, keys, self.screen.progress)
        script = [str(training_script()), f"--name={RUN}", f"--steps={UNENDING_STEPS}"]
        script += [f"--proof={sandbox.subfolder('trained')}", f"--checkpoints={sandbox.subfolder('checkpoints')}"]
        script += [f"--slow-disk={SLOW_DISK_S}", f"--save-every={UNENDING_STEPS}"]
        arguments = [*_TORCHRUN, f"--nproc-per-node={options.ranks}", f"--max-restarts={MAX_RESTARTS}", *script]
        async with self._program("torchrun", arguments) as (tasks, training):
            with self.screen.moving(progress):
                watching = tasks.create_task(progress.watch())
                evidence = await self._run_steps(client, DemoOperator(client, keys, sandbox), progress, training)
                watching.cancel()
        return evidence

    async def _run_steps(
        self, client: Client, operator: DemoOperator, progress: DemoProgress, training: asyncio.Task[None]
    ) -> Evidence | None:
        async def some_steps() -> None:
            await progress.wait_steps(self.options.steps, training)

        await some_steps()
        steered = [await self._change(operator, {"lr": "1e-3"}, "loss plateau")]
        await some_steps()
        steered.append(await self._change(operator, {"clip": "0.5", "weight_decay": "0.1"}, "spikes in grad_norm"))
        self.screen.command(operator.command({"lr": "-1"}, None))
        refusal = await operator.try_bad("lr", "-1")
        self.screen.receipt(f"refused: {refusal.reason}", good=not refusal.written)

        self.screen.heading("a crash", "the rank that writes the checkpoint is killed during the save")
        takeover = await self._kill_saver_during_save(operator)
        await progress.wait_for_view(progress.view + 1, training)
        formed = await client.get(RendezvousKeys(self.sandbox.settings.namespace, RUN).round)
        await some_steps()

        self.screen.heading("commands", "all ranks act before the same step")
        pause = await self._pause(operator)
        await some_steps()
        if self.sandbox.etcd.etcdctl is not None:
            self.screen.command(operator.put_command("lr", "3e-4"))
            steered.append(self._show(Steered("etcdctl put", await operator.put("lr", "3e-4"))))
        else:
            steered.append(await self._change(operator, {"lr": "3e-4"}, "towards the end"))
        if self.options.keep:
            await self._leave_to_user(progress, training, steered)
            return None
        await some_steps()
        stop = await self._stop(client, operator, training)
        round_ = Round.decode_or_none(formed.value if formed is not None else None)
        return Evidence(
            ranks=self.options.ranks,
            steered=tuple(steered),
            refusal=refusal,
            takeover=takeover,
            round=round_,
            pause=pause,
            stop=stop,
            baseline_lr=BASELINE_LR,
        )

    async def _kill_saver_during_save(self, operator: DemoOperator) -> Takeover:
        self.screen.command(operator.order_command("checkpoint", "--no-wait"))
        killing = operator.kill_saver(self.screen.command)
        takeover, _ = await all_of(killing, operator.send("checkpoint"))
        self.screen.receipt(
            f"rank {takeover.by_rank} led after {takeover.took_ms:.0f} ms, and rank {takeover.saved_by} saved step "
            f"{takeover.step}; torchrun restarts all ranks",
            good=True,
        )
        return takeover

    async def _pause(self, operator: DemoOperator) -> Pause:
        self.screen.command(operator.order_command("pause", '--why "a look at the data"'))
        receipt = await operator.order("pause", "a look at the data")
        self.screen.receipt(receipt.sentence, good=receipt.holds)
        began = time.monotonic()
        await asyncio.sleep(PAUSE_S)  # long enough to be seen; no event is awaited
        self.screen.command(operator.order_command("resume"))
        resumed = await operator.order("resume")
        self.screen.receipt(resumed.sentence, good=resumed.holds)
        return Pause(receipt.step if receipt.step is not None else -1, time.monotonic() - began)

    async def _stop(self, client: Client, operator: DemoOperator, training: asyncio.Task[None]) -> Stop:
        rank = self.options.ranks - 1
        pid = (await operator.pids())[rank]
        operator.check_pid(rank, pid)
        self.screen.command(f"kill -TERM {pid}  # rank {rank}, as when its machine is taken away")
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        await training
        took_s = time.monotonic() - began
        item = await client.get(operator.keys.latest)
        pointer = Pointer.decode_or_none(item.value if item is not None else None)
        step = pointer.step if pointer is not None else -1
        self.screen.receipt(f"all ranks saved step {step} and exited in {took_s:.1f} s, exit code 0", good=True)
        return Stop(rank=rank, checkpoint=step, code=0, took_s=took_s)

    async def _change(self, operator: DemoOperator, values: dict[str, str], reason: str) -> Steered:
        self.screen.command(operator.command(values, reason))
        return self._show(Steered("instep set", await operator.change(values, reason)))

    def _show(self, steered: Steered) -> Steered:
        receipt: ChangeReceipt = steered.receipt
        self.screen.receipt(receipt.sentence, good=receipt.holds)
        return steered

    async def _leave_to_user(
        self, progress: DemoProgress, training: asyncio.Task[None], steered: Sequence[Steered]
    ) -> None:
        """Returns when the user stops the run. An interrupt ends the demo."""
        self.kept = True
        self.screen.heading("your turn", "training continues until Ctrl-C; try from another terminal:")
        for words in (f"export INSTEP_ETCD={self.sandbox.endpoint}", *_TO_TRY):
            self.screen.command(words)
        shown = {item.receipt.plan for item in steered}
        while not training.done():  # the user may stop it
            for entry in progress.entries:
                if entry.plan not in shown:
                    shown.add(entry.plan)
                    what = f"{format_changes(entry.changes)}: {entry.outcome} at step {entry.step}"
                    self.screen.receipt(what, good=entry.outcome == "applied")
            await asyncio.sleep(0.2)

    async def _without_instep(self, client: Client) -> tuple[BaselineRecord, ...]:
        ranks, folder = self.options.ranks, self.sandbox.subfolder("alone")
        self.screen.heading("the same training without Instep", "each rank polls etcd on its own, every ten steps")
        where = [f"--etcd={self.sandbox.endpoint}", f"--key={BASELINE_KEY}", f"--proof={folder}"]
        script = ["-m", "instep.demo.without", str(training_script()), f"--ranks={ranks}", f"--steps={BASELINE_STEPS}"]
        async with self._program("without-instep", [*script, *where]) as (_, training):
            while not (folder / "now").exists() and not training.done():  # noqa: ASYNC110  # another process's file
                await asyncio.sleep(0.02)
            self.screen.command(f"etcdctl put {BASELINE_KEY} {BASELINE_LR}")
            await client.put(BASELINE_KEY, str(BASELINE_LR))
        alone = read_baseline(folder)
        heard = ", ".join(f"rank {item.rank} at step {item.first_step_with(BASELINE_LR)}" for item in alone)
        self.screen.say(f"lr 3e-3 → 1e-3 applied: {heard}", style="yellow")
        return alone

    @asynccontextmanager
    async def _program(
        self, name: str, arguments: Sequence[str]
    ) -> AsyncGenerator[tuple[asyncio.TaskGroup, asyncio.Task[None]]]:
        """Runs Python with these arguments until the block ends and the program has ended. Raises InstepError if it
        fails. Its session is its own, so Ctrl-C reaches only the demo, which then stops it.

        Yields a group of tasks that end with the block, and the task that waits for the program.
        """
        process = ServerProcess(
            [sys.executable, *arguments],
            log=self.sandbox.folder / f"{name}.log",
            environment=self.sandbox.environment(),
            parent_death_signal=signal.SIGTERM,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                yield tasks, tasks.create_task(self._end_of(process))
        except* InstepError as failures:
            raise failures.exceptions[0] from None
        finally:
            process.stop(END_S)

    async def _end_of(self, process: ServerProcess) -> None:
        """Returns when it exits with status 0. Otherwise shows the end of its log and raises InstepError."""
        while process.exit_status is None:  # noqa: ASYNC110  # another process is polled
            await asyncio.sleep(0.02)
        if process.exit_status != 0:
            self.screen.say(process.log_tail(_TAIL_LINES), "dim")
            what = f"{process.log.stem} ended with status {process.exit_status}"
            raise InstepError(f"{what}: the end of its log is shown above")


_TORCHRUN: Final = (
    *("-m", "torch.distributed.run", "--local-addr=127.0.0.1"),
    *("--nnodes=1", "--rdzv-backend=etcd3", f"--rdzv-id={RUN}"),  # with the etcd in INSTEP_ETCD
)
_TO_TRY: Final = (
    f"instep status {RUN} --watch",
    f'instep set {RUN} lr=2e-3 --why "let us see" --wait',
    f"instep pause {RUN}",
    f"instep resume {RUN}",
    f"instep history {RUN}",
    f"etcdctl --endpoints $INSTEP_ETCD put /training/{RUN}/config/clip 2",
    f"instep stop {RUN}",
)


# -- the command ---------------------------------------------------------------------------------------------


def run_demo(options: DemoOptions, *, as_json: bool) -> int:
    """See `instep.demo.main`."""
    check_needs()
    screen = Screen(_console(as_json))
    began = time.monotonic()
    with _interruptible() as interrupted:
        scenario: Scenario | None = None
        try:
            with Sandbox() as sandbox:
                scenario = Scenario(options, sandbox, screen)
                evidence = asyncio.run(scenario.run())
        except KeyboardInterrupt:
            kept = scenario is not None and scenario.kept
            screen.end("ended" if kept else "interrupted", ", no process left")
            return 0 if kept else 128 + interrupted[-1]
    if evidence is None:
        screen.end("ended", ", no process left")
        return 0
    checks = check(evidence)
    took_s = time.monotonic() - began
    screen.heading("claims and results")
    screen.summary(checks, took_s)
    if as_json:
        document = _document(evidence, checks, sandbox.etcd.version, took_s)
        print(json.dumps(document, ensure_ascii=False, indent=2))  # noqa: T201  # --json: stdout is for the document
    return 0 if all(item.held for item in checks) else 1


def _console(as_json: bool) -> Console:
    console = Console(stderr=as_json, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Makes SIGTERM and SIGHUP end the demo as Ctrl-C does. Yields the signals received."""
    came = [int(signal.SIGINT)]

    def interrupt(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        signal.raise_signal(signal.SIGINT)

    # A shell starts background jobs with SIGINT ignored.
    handlers: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
    handlers |= {signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _document(evidence: Evidence, checks: tuple[Check, ...], etcd: str, took_s: float) -> dict[str, Any]:
    return {
        "held": all(item.held for item in checks),
        "ranks": evidence.ranks,
        "steps": evidence.last_step + 1,
        "etcd": etcd,
        "took_s": round(took_s, 1),
        "changes": [steered.to_json() for steered in evidence.steered],
        "refused": evidence.refusal.to_json(),
        "takeover": evidence.takeover.to_json(),
        "pause": evidence.pause.to_json(),
        "stop": evidence.stop.to_json(),
        "without": [
            {"rank": item.rank, "step": item.first_step_with(evidence.baseline_lr), "sha256": item.after}
            for item in evidence.baseline
        ],
        "checks": [item.to_json() for item in checks],
    }
