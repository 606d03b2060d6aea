"""The demo, act by act: train and steer with Instep, then the same without it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from instep.control import ChangeReceipt, Keys, connect, format_changes
from instep.demo._checks import Evidence, Steered
from instep.demo._operator import Operator, Refusal
from instep.demo._processes import Program
from instep.demo._progress import Progress
from instep.demo._proof import RankProof, read_proofs
from instep.demo._screen import Screen, exports
from instep.demo._stage import RUN, SCRIPT, Stage, training_script
from instep.errors import InstepError, SettingsError
from instep.etcd import Client

ALONE_STEPS: Final = 60
ALONE_KEY: Final = "/without-instep/lr"
ALONE_LR: Final = 1e-3
UNENDING_STEPS: Final = 1_000_000_000
MIN_STEPS: Final = 100
MAX_RANKS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Raises SettingsError for a demo that could show nothing."""

    steps: int
    ranks: int
    keep: bool = False

    def __post_init__(self) -> None:
        if self.steps < MIN_STEPS:
            raise SettingsError(f"--steps is {self.steps}: the changes need at least {MIN_STEPS} steps to happen in")
        if not 2 <= self.ranks <= MAX_RANKS:
            raise SettingsError(
                f"--ranks is {self.ranks}: give 2 to {MAX_RANKS}, for one rank cannot drift from itself"
            )


@dataclass(slots=True)
class Play:
    """One demo on its stage. `kept` says that the changes are made and the training is the user's now."""

    options: Options
    stage: Stage
    screen: Screen
    kept: bool = False
    etcd: str = field(init=False)

    def __post_init__(self) -> None:
        self.etcd = self.stage.server.version

    async def play(self) -> Evidence:
        options, screen = self.options, self.screen
        screen.title("instep demo", f"{options.ranks} ranks train one model; an operator changes it while they do")
        screen.heading("a real etcd", f"{self.etcd} at {self.stage.server.endpoint}, for this demo alone")
        async with connect(self.stage.settings) as client:
            steered, refusal = await self._with_instep(client)
            alone = await self._without_instep(client)
        return Evidence(
            ranks=options.ranks,
            steps=options.steps,
            trained=read_proofs(self.stage.subfolder("trained")),
            steered=tuple(steered),
            refusal=refusal,
            alone=alone,
            alone_lr=ALONE_LR,
        )

    async def _with_instep(self, client: Client) -> tuple[list[Steered], Refusal]:
        options, stage = self.options, self.stage
        keys = Keys(stage.settings.namespace, RUN)
        self.screen.heading("training with Instep", f"torchrun --nproc-per-node {options.ranks} examples/{SCRIPT}")
        progress = Progress(client, keys, None if options.keep else options.steps, self.screen.progress)
        script = [str(training_script()), f"--name={RUN}", f"--proof={stage.subfolder('trained')}"]
        steps = UNENDING_STEPS if options.keep else options.steps
        torchrun = self._program(
            "torchrun", *_TORCHRUN, f"--nproc-per-node={options.ranks}", *script, f"--steps={steps}"
        )
        try:
            async with torchrun, asyncio.TaskGroup() as tasks:
                training = tasks.create_task(torchrun.wait())
                with self.screen.moving(progress):
                    watching = tasks.create_task(progress.watch())
                    operator = Operator(client, keys, stage.server)
                    steered, refusal = await self._steer(operator, progress, training)
                    if options.keep:
                        await self._leave_to_user(progress, training, steered)
                    await training
                    watching.cancel()
        except* InstepError as failures:
            raise failures.exceptions[0] from None
        return steered, refusal

    async def _steer(
        self, operator: Operator, progress: Progress, training: asyncio.Task[None]
    ) -> tuple[list[Steered], Refusal]:
        steps = self.options.steps
        steered = []
        await progress.reach(steps * 15 // 100, training)
        steered.append(await self._change(operator, {"lr": "1e-3"}, "loss plateau"))
        await progress.reach(steps * 35 // 100, training)
        steered.append(await self._change(operator, {"clip": "0.5", "weight_decay": "0.1"}, "spikes in grad_norm"))
        await progress.reach(steps * 50 // 100, training)
        self.screen.command(operator.command({"lr": "-1"}, None))
        refusal = await operator.try_bad("lr", "-1")
        self.screen.receipt(f"refused: {refusal.reason}", good=not refusal.written)
        await progress.reach(steps * 60 // 100, training)
        if operator.has_etcdctl:
            self.screen.command(operator.put_command("lr", "3e-4"))
            steered.append(self._told(Steered("etcdctl put", await operator.put("lr", "3e-4"))))
        else:
            steered.append(await self._change(operator, {"lr": "3e-4"}, "towards the end"))
        return steered, refusal

    async def _change(self, operator: Operator, values: dict[str, str], reason: str) -> Steered:
        self.screen.command(operator.command(values, reason))
        return self._told(Steered("instep set", await operator.change(values, reason)))

    def _told(self, steered: Steered) -> Steered:
        receipt: ChangeReceipt = steered.receipt
        self.screen.receipt(receipt.sentence, good=receipt.holds)
        return steered

    async def _leave_to_user(
        self, progress: Progress, training: asyncio.Task[None], steered: Sequence[Steered]
    ) -> None:
        """Until the training ends by itself (it does not) or the demo is interrupted."""
        self.kept = True
        self.screen.heading("yours", "it goes on training until Ctrl-C; from another terminal:")
        for line in exports({"INSTEP_ETCD": self.stage.server.endpoint}):
            self.screen.command(line)
        for words in _TO_TRY:
            self.screen.command(words)
        told = {item.receipt.plan for item in steered}
        while not training.done():
            for entry in progress.entries:
                if entry.plan not in told:
                    told.add(entry.plan)
                    what = f"{format_changes(entry.changes)}: {entry.outcome} at step {entry.step}"
                    self.screen.receipt(what, good=entry.outcome == "applied")
            await asyncio.sleep(0.2)

    async def _without_instep(self, client: Client) -> tuple[RankProof, ...]:
        ranks, folder = self.options.ranks, self.stage.subfolder("alone")
        self.screen.heading("the same training without Instep", "each rank asks etcd by itself, every ten steps' time")
        where = [f"--etcd={self.stage.server.endpoint}", f"--key={ALONE_KEY}", f"--proof={folder}"]
        script = ["-m", "instep.demo.without", str(training_script()), f"--ranks={ranks}", f"--steps={ALONE_STEPS}"]
        program = self._program("without-instep", *script, *where)
        try:
            async with program, asyncio.TaskGroup() as tasks:
                training = tasks.create_task(program.wait())
                # ASYNC110 wants an event; the file is another process's.
                while not (folder / "now").exists() and not training.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                self.screen.command(f"etcdctl put {ALONE_KEY} {ALONE_LR}")
                await client.put(ALONE_KEY, str(ALONE_LR))
        except* InstepError as failures:
            raise failures.exceptions[0] from None
        proofs = read_proofs(folder)
        heard = ", ".join(f"rank {proof.rank} at step {proof.first_step_with('lr', ALONE_LR)}" for proof in proofs)
        self.screen.say(f"lr 3e-3 → 1e-3 applied: {heard}", style="yellow")
        return proofs

    def _program(self, name: str, *arguments: str) -> Program:
        log = self.stage.folder / f"{name}.log"
        return Program(arguments, self.stage.environment(), log=log, tell=lambda tail: self.screen.say(tail, "dim"))


_TORCHRUN: Final = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1")
_TO_TRY: Final = (
    f"instep status {RUN} --watch",
    f'instep set {RUN} lr=2e-3 --why "let us see" --wait',
    f"instep history {RUN}",
    f"etcdctl --endpoints $INSTEP_ETCD put /training/{RUN}/config/clip 2",
)
