"""All events of a run in random order, chosen by hypothesis, and what must hold at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_cluster import NOT_FOR_WORKERS, Cluster, Host, Worker
from virtual_loop import virtual_time

from instep.protocol.records import Left, Rejected
from instep.scalar import parse_scalar

LAYOUTS = (((0,), (1,)), ((0, 1), (2,)), ((0,), (1,), (2,)), ((0,), (1, 2, 3)))
LANES = (
    *("state", "acks", "receipts", "left", "members", "c", "election", "schemas"),
    *("verified", "failures", "barriers", "attempts"),
)
BAD = {"lr": ("2", "0.1.2", '"much"', "NaN"), "clip": ("-1", str(NOT_FOR_WORKERS)), "size": ("16",), "warp": ("9",)}
PHASES = ("state/plans/", "reports/acks/", "/decision", "reports/receipts/")
ROUNDS = 160
PATIENCE = 20

good_names = st.sampled_from([("lr",), ("lr",), ("clip",), ("lr", "clip")])
bad_put = st.sampled_from([(name, text) for name, texts in BAD.items() for text in texts])
ranks = st.integers(0, 3)
hosts = st.integers(0, 2)
lanes = st.sampled_from(LANES)

DEFAULT = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
HUNT = settings(DEFAULT, max_examples=600, phases=(Phase.generate,), report_multiple_bugs=False)
DEEP = settings(DEFAULT, max_examples=2500, stateful_step_count=80, derandomize=False)
IS_DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
PROFILE = DEEP if IS_DEEP else DEFAULT
HISTORY_PROFILE = DEEP if IS_DEEP else settings(DEFAULT, max_examples=30)


class AgreementMachine(RuleBasedStateMachine):
    """The rules of every run. model_training and model_cluster check the promise itself during the run."""

    lockstep = True
    history_goes_back = False
    """Whether etcd is also restored to earlier revisions."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.cluster: Cluster
        self.stop = 0
        self.wanted = 0
        self.puts: dict[int, dict[str, str]] = {}

    @initialize(layout=st.sampled_from(LAYOUTS), stop=st.sampled_from([0, 0, 0, 8, 14]))
    def begin(self, layout: tuple[tuple[int, ...], ...], stop: int) -> None:
        self.begin_with(layout, stop)

    def begin_with(self, layout: tuple[tuple[int, ...], ...], stop: int) -> None:
        """Each rank joins; at step `stop`, unless it is 0, its loop ends."""
        self.stop = stop
        self.cluster = Cluster(layout, lockstep=self.lockstep)
        self.stack.enter_context(virtual_time(self.cluster.loop))
        self.stack.enter_context(self.cluster)
        for _ in range(100):
            if all(worker.step > 2 for worker in self.cluster.workers.values()):
                return
            self.everyone(1)
        raise AssertionError(f"the run does not begin: {self._describe()}")

    # -- training continues --------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def everyone(self, count: int) -> None:
        """All continue; dead processes are restarted, as torchrun would."""
        self._replace_the_dead()
        for _ in range(2 * count):
            for worker in tuple(self.cluster.workers.values()):
                self._advance(worker)
            self.cluster.loop.advance(0.02)

    @rule(rank=ranks, count=st.integers(1, 3))
    def one(self, rank: int, count: int) -> None:
        worker = self._worker(rank)
        for _ in range(count):
            self._advance(worker)

    @rule(seconds=st.sampled_from([0.3, 1.1, 6.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        for host in self._hosts():
            host.may_start = True
        self.cluster.loop.advance(seconds)

    # -- people want things ------------------------------------------------------------------------------------------

    @rule(names=good_names, author=st.sampled_from([None, "ana"]))
    def want(self, names: tuple[str, ...], author: str | None) -> None:
        self._put(self._good(names), author)

    @rule(names=good_names, phase=st.sampled_from(PHASES), held=st.sampled_from([None, None, *LANES[:3]]), host=hosts)
    def want_until(self, names: tuple[str, ...], phase: str, held: str | None, host: int) -> None:
        """A change, and training until it has reached a phase in which faults matter."""
        if held is not None:
            self._host(host).client.hold_watch(held)
        keys, before = self.cluster.keys, self.cluster.store.revision
        self._put(self._good(names), None)
        for _ in range(6):
            changed = [item for item in self.cluster.store.range(keys.root).kvs if item.mod_revision > before]
            if any(phase in item.key for item in changed):
                break
            for worker in tuple(self.cluster.workers.values()):
                self._advance(worker)

    @rule(bad=bad_put, names=st.sampled_from([(), ("lr",)]))
    def want_what_cannot_be(self, bad: tuple[str, str], names: tuple[str, ...]) -> None:
        self._put({**self._good(names), bad[0]: bad[1]}, None)

    @rule(kind=st.sampled_from(["pause", "pause", "resume", "checkpoint", "stop", "action"]), save=st.booleans())
    def command(self, kind: str, save: bool) -> None:
        if kind != "stop" or self.cluster.store.revision % 3 == 0:  # it ends the run, and with it what can be found out
            self.cluster.command(kind, save=save, name="nothing" if kind == "action" else None)

    @precondition(lambda self: not self.history_goes_back)
    @rule()
    def meet(self) -> None:
        """The script calls a barrier in a later step."""
        self.cluster.meet()

    @precondition(lambda self: not self.history_goes_back)
    @rule()
    def reset(self) -> None:
        self.cluster.reset_attempts()

    # -- etcd is slow, or its answers are lost -------------------------------------------------------------------------

    @rule(host=hosts)
    def hold_calls(self, host: int) -> None:
        self._host(host).client.hold_calls()

    @rule(host=hosts, lane=lanes)
    def hold_watch(self, host: int, lane: str) -> None:
        self._host(host).client.hold_watch(lane)

    @precondition(lambda self: any(host.node and host.client.pending for host in self._hosts()))
    @rule(host=hosts, which=st.integers(0, 5), fate=st.sampled_from(["answer", "answer", "lose", "lose_reply"]))
    def one_call(self, host: int, which: int, fate: str) -> None:
        pending = self._host(host).client.pending
        if pending:
            request = pending[which % len(pending)]
            pending.remove(request)
            getattr(request, fate)()
        self.cluster.loop.settle()

    @precondition(lambda self: any(host.node and host.client.calls_held for host in self._hosts()))
    @rule(host=hosts)
    def release_calls(self, host: int) -> None:
        self._host(host).client.release_calls()
        self.cluster.loop.settle()

    @precondition(lambda self: self.cluster.strays)
    @rule(which=st.integers(0, 5))
    def a_call_of_the_dead_arrives(self, which: int) -> None:
        strays = self.cluster.strays
        stray = strays[which % len(strays)]
        strays.remove(stray)
        stray.answer()
        self.cluster.loop.settle()

    @precondition(lambda self: any(host.node and host.client.held_lanes for host in self._hosts()))
    @rule(host=hosts, lane=lanes, batches=st.sampled_from([1, 2, None]))
    def release_watch(self, host: int, lane: str, batches: int | None) -> None:
        self._host(host).client.release_watch(lane, batches)
        self.cluster.loop.settle()

    @rule(full=st.booleans())
    def database(self, full: bool) -> None:
        """etcd reaches its quota, or has space again. Operators' puts still succeed: they came just before."""
        self.cluster.store.full = full

    @rule(host=hosts)
    def lease_ends(self, host: int) -> None:
        for lease in tuple(self._host(host).client.leases):
            self.cluster.store.revoke(lease)
        self.cluster.loop.settle()

    @precondition(lambda self: self.history_goes_back)
    @rule(back=st.integers(0, 60), wipe=st.sampled_from([False, False, False, True]))
    def etcd_goes_back(self, back: int, wipe: bool) -> None:
        """etcd is restored from a backup or wiped: later writes are lost, also desired values."""
        store = self.cluster.store
        revision = 1 if wipe else max(1, store.revision - back)
        self.puts = {number: values for number, values in self.puts.items() if number <= revision}
        self.cluster.go_back(revision)

    # -- the streams between workers and agents ----------------------------------------------------------------------

    @rule(rank=ranks, up=st.booleans())
    def hold_stream(self, rank: int, up: bool) -> None:
        delays = self._worker(rank).delays
        if up:
            delays.up_held = True
        else:
            delays.down_held = True

    @precondition(lambda self: any(w.delays.up_held or w.delays.down_held for w in self.cluster.workers.values()))
    @rule(rank=ranks, way=st.sampled_from(["up", "down"]), count=st.sampled_from([1, 2, None]))
    def release_stream(self, rank: int, way: str, count: int | None) -> None:
        self._release(self._worker(rank), **{way: count})

    @rule(rank=ranks)
    def cut(self, rank: int) -> None:
        self.cluster.cut(self._worker(rank))

    @rule()
    def all_flows(self) -> None:
        self._heal()

    # -- agents die --------------------------------------------------------------------------------------------------

    @rule(host=hosts, keep_down=st.booleans(), back=st.sampled_from([True, True, False]))
    def agent_dies(self, host: int, keep_down: bool, back: bool) -> None:
        found = self._host(host)
        found.crash(keep_down=keep_down)
        found.may_start = back
        self.cluster.loop.settle()

    # -- what holds after every step ---------------------------------------------------------------------------------

    @invariant()
    def decisions_stand(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.checks.check()

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "cluster"):
                self.come_to_rest()

    # -- the end: no more faults -------------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """No desired value is lost, and no process waits permanently."""
        self._heal()
        self._end_doubles(())
        for number in range(ROUNDS):
            unmet = self._unmet()
            self.cluster.checks.check()
            if not unmet:
                return
            self._resume()
            if number == PATIENCE:
                view = self.cluster.view()
                self._end_doubles(view.incarnations().values() if view is not None else ())
            for worker in tuple(self.cluster.workers.values()):
                self._advance(worker)
                self._advance(worker)
            if number >= PATIENCE:
                self._time_out_collectives()
                self._skip_ahead()
            self._replace_the_dead()
            self.cluster.loop.advance(0.5)
        raise AssertionError(f"{unmet}; {self._describe()}")

    def _resume(self) -> None:
        agreed = self.cluster.agreed()
        if agreed is not None and agreed.directive.paused_at is not None and not self._commands():
            self.cluster.command("resume")

    def _commands(self) -> list[str]:
        return [item.text for item in self.cluster.store.range(self.cluster.keys.commands).kvs]

    def _heal(self) -> None:
        self.cluster.store.full = False
        while self.cluster.strays:
            self.cluster.strays.pop(0).answer()
        for host in self._hosts():
            host.may_start = True
            if host.node is not None:
                host.client.release_calls()
                for lane in LANES:
                    host.client.release_watch(lane)
        for worker in self.cluster.ever:
            self._release(worker, up=None, down=None)
        self._end_leases_of_the_dead()
        self.cluster.loop.settle()

    def _end_doubles(self, named: Collection[str]) -> None:
        """Of two processes of a rank, the one that registered later counts, which need not be the one started later: an
        agent that was away registers its workers when it is back. People then end the one that they did not want, also
        where its decisions cannot be joined with those of the others: status and logs say so."""
        problem = self.cluster.epoch_problem()
        for worker in tuple(self.cluster.evicting):
            if worker.incarnation in named or not worker.run.view or problem:
                self.cluster.kill(worker, lose_part=False)

    def _time_out_collectives(self) -> None:
        """A worker in a step checks nothing. If it is no member (its agent died, or it was replaced), no process can
        replace the rank that it waits for: its collective runs into its timeout, and it dies."""
        cluster = self.cluster
        for worker in tuple(cluster.workers.values()):
            stuck = worker.alive and worker.inside and not cluster.training.may_finish(worker.place)
            if stuck and cluster.store.get(cluster.keys.member(worker.rank, worker.incarnation)) is None:
                cluster.kill(worker, lose_part=True)

    def _skip_ahead(self) -> None:
        """A gate may be far ahead if a plan took long to be agreed: training reaches it eventually."""
        agreed, training = self.cluster.agreed(), self.cluster.training
        active = [worker for worker in self.cluster.workers.values() if worker.alive]
        top = max((worker.step + worker.inside for worker in active), default=0)
        for worker in active * 4:
            if worker.step < top:
                self._advance(worker)
        plan = self.cluster.plan(agreed.plan) if agreed is not None else None
        if agreed is None or plan is None or any(worker.inside or not worker.step for worker in active):
            return
        backs = {worker.back for worker in active}
        if len(backs) > 1 or (plan.kind == "restore" and agreed.back in backs):
            return
        near = plan.gate - 2
        if all(worker.step < near for worker in active):
            for worker in active:
                worker.step = near
                training.skip_to(worker.rank, worker.place)

    def _replace_the_dead(self) -> None:
        for worker in tuple(self.cluster.workers.values()):
            if not worker.alive and worker.rank not in self.cluster.training.left:
                self.cluster.start(worker.rank, worker.host)

    def _unmet(self) -> list[str]:
        for worker in tuple(self.cluster.evicting):
            self.cluster.look(worker)
        unaware = [worker for worker in self.cluster.evicting if worker.run.view]
        if unaware:
            return [f"{worker} was replaced and does not know it" for worker in unaware]
        if self._left_unheard() or self._cannot_go_on():
            return []
        active = [worker for worker in self.cluster.workers.values() if worker.alive]
        if not active:
            return []
        if any(worker.step == 0 for worker in active) or len(active) + len(self.cluster.training.left) < len(
            self.cluster.workers
        ):
            return ["not every rank trains"]
        waiting = [worker for worker in active if worker.at_barrier]
        if waiting:
            return [f"{worker} waits at the barrier" for worker in waiting]
        if self.cluster.training.left and self.lockstep:
            return ["not every rank has ended"]
        agreed = self.cluster.agreed()
        if agreed is None or not self.cluster.settled:
            return ["etcd does not hold what the ranks hold"]
        if agreed.directive.paused_at is not None or self._commands():
            return [f"{agreed.directive}, and {self._commands()} are neither done nor declined"]
        found = [
            f"rank {worker.rank} has {worker.values()} instead of {agreed.values}"
            for worker in active
            if worker.values() != agreed.values
        ]
        return found + [problem for item in self._desired() if (problem := self._problem_of(item, agreed.values))]

    def _cannot_go_on(self) -> bool:
        """A rank has ended and another one died: no view can have all ranks, so newcomers wait in vain."""
        left = self.cluster.training.left
        return bool(left) and any(
            rank not in left and (not worker.alive or not worker.step) for rank, worker in self.cluster.workers.items()
        )

    def _left_unheard(self) -> bool:
        """A rank ended cleanly while no agent received or could record it, or in a view that etcd has lost: it counts
        as dead."""
        view = self.cluster.view()
        if view is None:
            return bool(self.cluster.training.left)
        left: set[int] = set()
        for item in self.cluster.store.range(self.cluster.keys.left).kvs:
            record = Left.decode_or_none(item.value)
            if record is not None and record.view == view.number:
                left |= set(record.ranks)
        return bool(self.cluster.training.left - left)

    def _desired(self) -> list[tuple[str, str, int]]:
        keys = self.cluster.keys
        return [
            (item.key.removeprefix(keys.config), item.text, item.mod_revision)
            for item in self.cluster.store.range(keys.config).kvs
        ]

    def _problem_of(self, item: tuple[str, str, int], agreed: dict[str, Any]) -> str | None:
        name, text, revision = item
        record = self.cluster.store.get(self.cluster.keys.rejected_of(name))
        rejected = Rejected.decode_or_none(record.value if record else None)
        is_rejected = rejected is not None and rejected.revision == revision
        together = self.puts.get(revision, {name: text}).items()
        if all(_is_good(other, given) for other, given in together):
            if is_rejected:
                return f"{name}={text} is good and was rejected: {rejected}"
            return None if agreed[name] == parse_scalar(text) else f"{name}={text} is good and was lost"
        if _is_good(name, text):
            return None if is_rejected or agreed[name] == parse_scalar(text) else f"{name}={text} is neither"
        if name == "size" and text == "16" and agreed[name] == 16:
            return None
        return None if is_rejected else f"{name}={text} is bad and nobody says so"

    def _describe(self) -> str:
        cluster = self.cluster
        found = ((item.key.removeprefix(cluster.keys.root), item.text) for item in cluster.store.range("/").kvs)
        state = {
            key: text for key, text in found if not key.startswith(("schema", "reports/schemas", "reports/metrics"))
        }
        return f"{list(cluster.workers.values())}, {[host.node for host in self._hosts()]}, {state}"

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _hosts(self) -> list[Host]:
        return self.cluster.hosts

    def _host(self, index: int) -> Host:
        return self._hosts()[index % len(self._hosts())]

    def _worker(self, index: int) -> Worker:
        return self.cluster.workers[index % self.cluster.world_size]

    def _advance(self, worker: Worker) -> None:
        if worker.alive and self.stop and worker.step > self.stop and not worker.inside:
            self._leave(worker)
        self.cluster.go(worker)

    def _leave(self, worker: Worker) -> None:
        self.cluster.leave(worker)

    def _good(self, names: tuple[str, ...]) -> dict[str, str]:
        """Values that were never desired before, so every put is a change."""
        self.wanted += 1
        return {name: f"{'0.2' if name == 'lr' else '2.'}{self.wanted:03}" for name in names}

    def _put(self, values: dict[str, str], author: str | None) -> None:
        self.puts[self.cluster.put(values, author)] = values

    def _release(self, worker: Worker, **streams: int | None) -> None:
        for name, count in streams.items():
            if count is None:
                setattr(worker.delays, f"{name}_held", False)
            for connection in worker.link.made:
                if name == "down":
                    connection.pump_down(count)
                else:
                    self.cluster.loop.call_soon(connection.pump_up, count)
        self.cluster.loop.settle()

    def _end_leases_of_the_dead(self) -> None:
        while self.cluster.dead_clients:
            for lease in self.cluster.dead_clients.pop().leases:
                self.cluster.store.revoke(lease)
        self.cluster.loop.settle()


def _is_good(name: str, text: str) -> bool:
    return text not in BAD.get(name, ())


class LockstepMachine(AgreementMachine):
    """A collective in every step; workers die, are replaced one by one or all together, or are evicted."""

    @rule(rank=ranks, lose_part=st.booleans())
    def worker_dies(self, rank: int, lose_part: bool) -> None:
        worker = self._worker(rank)
        if worker.alive:
            self.cluster.kill(worker, lose_part=lose_part)

    @rule(rank=ranks, host=hosts, same_host=st.booleans())
    def worker_starts(self, rank: int, host: int, same_host: bool) -> None:
        """Also if a process of the rank still runs: it is evicted."""
        worker = self._worker(rank)
        if not self.cluster.training.left:
            self.cluster.start(worker.rank, worker.host if same_host else self._host(host))

    @rule(resume_at=st.integers(0, 20))
    def all_start_again(self, resume_at: int) -> None:
        if self.cluster.training.left:
            return
        for worker in tuple(self.cluster.workers.values()):
            if worker.alive:
                self.cluster.kill(worker, lose_part=True)
        self.cluster.training.resume_at = resume_at
        for worker in tuple(self.cluster.workers.values()):
            self.cluster.start(worker.rank, worker.host)

    @precondition(lambda self: not self.history_goes_back)
    @rule(damaged=st.sampled_from([None, None, 0, 1]))
    def save(self, damaged: int | None) -> None:
        """A checkpoint of the last finished step, which a rank may not be able to load."""
        manifest = self.cluster.save()
        if manifest is not None and damaged is not None:
            self.cluster.damaged.add((damaged, manifest.id))

    @precondition(lambda self: self.cluster.saved)
    @rule(which=st.integers(0, 3))
    def restore(self, which: int) -> None:
        saved = sorted(self.cluster.saved)
        self.cluster.command("restore", name=saved[which % len(saved)])

    @precondition(lambda self: len(self.cluster.saved) > 1)
    @rule(which=st.integers(0, 3))
    def forget(self, which: int) -> None:
        saved = sorted(self.cluster.saved)
        self.cluster.forget(saved[which % len(saved)])

    @precondition(lambda self: self.cluster.evicting)
    @rule()
    def the_evicted_look(self) -> None:
        for worker in tuple(self.cluster.evicting):
            self.cluster.look(worker)


class DriftingMachine(AgreementMachine):
    """No collective: ranks may be far apart. No worker dies, because there is no common step to restart from."""

    lockstep = False

    @rule(rank=ranks, count=st.integers(4, 12))
    def run_ahead(self, rank: int, count: int) -> None:
        self.one(rank, count)

    @rule(rank=ranks)
    def leave(self, rank: int) -> None:
        worker = self._worker(rank)
        if worker.alive and worker.step and not worker.inside:
            self.cluster.leave(worker)


class LockstepHistoryMachine(LockstepMachine):
    """The history of etcd also goes back, any number of times."""

    history_goes_back = True


class DriftingHistoryMachine(DriftingMachine):
    """The history of etcd also goes back, any number of times."""

    history_goes_back = True


__all__ = [
    "DEFAULT",
    "HUNT",
    "HISTORY_PROFILE",
    "PROFILE",
    "AgreementMachine",
    "DriftingHistoryMachine",
    "DriftingMachine",
    "LockstepHistoryMachine",
    "LockstepMachine",
]
