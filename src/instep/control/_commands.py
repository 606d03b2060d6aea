"""Sending commands to a run: each is checked against the run's state first, then written, or not at all.

The leader has the last word: it declines a command that was overtaken on its way, with the same words. The commands
themselves are defined in `command_kinds.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from instep.command_kinds import COMMAND_KINDS, NEVER_STEP, CommandKind, Conditions, Takes, describe, why_refused
from instep.control._cache import RunCache
from instep.control._change import TRIES, change_by
from instep.control._read import PAGE_SIZE, load, run_not_found
from instep.control._report import JsonReport, closest
from instep.control._runs import state_of_workers
from instep.errors import CommandRefused, EtcdFull, EtcdUnavailable, NotRunning, SettingsError
from instep.etcd import Client, Compare, Op
from instep.names import check_action_name
from instep.protocol.commands import directive_after
from instep.protocol.keys import Keys
from instep.protocol.records import Command, Declined, Directive, Plan, format_ranks
from instep.text import counted, one_line

LATEST = "latest"
"""Names the newest committed checkpoint."""
_RANKS_READ = 64
"""Ranks whose registration and declared actions are read; the plan asks the others."""
_PLANS_READ = 24
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Sent(JsonReport):
    """A command that is in etcd. `revision` is its place in etcd's order, `command_id` its key."""

    run: str
    revision: int
    command_id: str
    kind: str
    name: str | None
    """The action, or the checkpoint to go back to."""
    save: bool
    """For a stop: whether a checkpoint is saved first."""
    node: str | None
    """For a stop: the node that is about to be lost."""
    author: str
    reason: str | None
    asked_at_s: float = field(default=0.0, metadata={"json": False})
    """Monotonic time before the write: the receipt's duration starts here."""
    epoch: int = field(default=0, metadata={"json": False})
    """The run's epoch at the write: a later one shows that etcd's history has gone back since."""

    @property
    def what(self) -> str:
        return describe(self.kind, self.name, save=self.save, node=self.node)

    @property
    def saves(self) -> bool:
        """Whether it requests a checkpoint."""
        return COMMAND_KINDS[self.kind].saves(self)


@dataclass(frozen=True, slots=True)
class ActionReport(JsonReport):
    """`ranks` have declared it, as ranges; it can be requested when all of them have (`everywhere`)."""

    name: str
    ranks: str
    everywhere: bool


@dataclass(frozen=True, slots=True)
class ActionsReport(JsonReport):
    run: str
    revision: int
    actions: tuple[ActionReport, ...]
    """By name; for each rank the first 64."""


async def send(
    client: Client,
    keys: Keys,
    kind: str,
    *,
    name: str | None = None,
    save: bool = True,
    node: str | None = None,
    author: str | None = None,
    reason: str | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Sent:
    """Write a command (a name in `COMMAND_KINDS`) with its author and reason. `name` is the action, or the checkpoint
    to go back to (its id, or `latest`); `save` and `node` (its name or host) are for a stop.

    It is checked before anything is written, and written only if what was checked has not changed. All ranks carry it
    out at one step, or the run declines it: see `follow`. Raises RunNotFound, NotRunning, CommandRefused,
    SettingsError, or EtcdUnavailable, whose `applied_unknown` says that it may have been written.
    """
    asked_at_s = monotonic()
    by = change_by(author, reason)
    if kind not in COMMAND_KINDS:
        raise SettingsError(f"{one_line(kind)!r} is not a command: give one of {', '.join(COMMAND_KINDS)}")
    if COMMAND_KINDS[kind].argument == "action":
        check_action_name(name)
    command = Command(kind=kind, name=name, save=save, node=node, author=by.author, reason=by.reason)
    for _ in range(TRIES):
        before = await _read(client, keys, command)
        checked = _checked(before, command)
        revision = await _write(client, before, checked, by.id)
        if revision is not None:
            return Sent(
                run=keys.run,
                revision=revision,
                command_id=by.id,
                kind=kind,
                name=checked.name,
                save=checked.save,
                node=checked.node,
                author=by.author or "",
                reason=by.reason,
                asked_at_s=asked_at_s,
                epoch=before.epoch.number if before.epoch is not None else 0,
            )
    raise CommandRefused(
        f"nothing was written: the state of {keys.run} changed {TRIES} times while it was read; try again"
    )


async def actions(client: Client, keys: Keys) -> ActionsReport:
    """The actions that `send(..., "action", name=...)` accepts, from the ranks' latest reports, which may be seconds
    old.

    Raises RunNotFound and NotRunning.
    """
    cache = await load(client, keys, plans=1, receipts=0, members=True, metrics=True)
    why = why_not_running(cache)
    if why is not None:
        raise NotRunning(why)
    everyone = {rank for rank, item in cache.metrics.items() if item.actions is not None}
    found = tuple(
        ActionReport(name, format_ranks(ranks), everyone <= ranks and bool(ranks))
        for name, ranks in _declared(cache).items()
    )
    return ActionsReport(keys.run, cache.revision, found)


def why_not_running(cache: RunCache) -> str | None:
    """Why no worker would carry out a command, with the fix; needs the members, or those of the view."""
    run, state = cache.keys.run, state_of_workers(cache)
    if cache.live and not _view_is_alive(cache):
        return f"run {run} is starting, its ranks do not train yet: try again when 'instep status {run}' says they do"
    if cache.live and cache.ended():
        state = "ended"
    reasons = {
        "ended": "all its ranks have ended cleanly",
        "stopped": "no worker of it is alive",
        "new": "no worker has ever joined it",
    }
    return f"run {run} is not running: {reasons[state]}; start it first" if state in reasons else None


async def _read(client: Client, keys: Keys, command: Command) -> RunCache:
    """What a command is checked against. Raises RunNotFound and NotRunning."""
    everyone = 0 if command.node is not None else _RANKS_READ
    argument = COMMAND_KINDS[command.kind].argument
    ops = [Op.get(keys.agreed), Op.get(keys.view), Op.get(keys.epoch), Op.range(keys.left), Op.range(keys.commands)]
    ops += [Op.range(keys.members, limit=everyone), Op.range(keys.root, limit=1)]
    if argument is not None:
        ops.append(Op.range(keys.metrics, limit=_RANKS_READ))
    if argument == "checkpoint":
        ops.append(Op.range(keys.checkpoints))
    cache = RunCache.of_txn(keys, await client.txn([], ops))
    if cache.empty:
        raise await run_not_found(client, keys)
    if cache.live and not _view_is_alive(cache) and everyone:
        listing = await client.range(keys.members, revision=cache.revision, page_size=PAGE_SIZE)
        cache.put_all(listing.kvs)
    why = why_not_running(cache)
    if why is not None:
        raise NotRunning(f"nothing was written: {why}")
    return cache


def _view_is_alive(cache: RunCache) -> bool:
    """Whether any worker of the view is alive: when new workers start, they delete the commands for those before."""
    if cache.view is None:
        return False
    trains = cache.view.workers()
    return any(item.member.worker in trains for item in cache.members.values())


def _checked(cache: RunCache, command: Command) -> Command:
    """The command with its names resolved. Raises CommandRefused."""
    if command.node is not None:
        node, why_not = _node_named(cache, command.node)
        if node is None:
            raise CommandRefused(f"nothing was written: {why_not}")
        command = command.model_copy(update={"node": node})
    loads = COMMAND_KINDS[command.kind].argument == "checkpoint"
    if loads and command.name == LATEST and cache.latest is not None:
        command = command.model_copy(update={"name": cache.latest.id})
    why = _why_refused(cache, command)
    if why is not None:
        raise CommandRefused(f"nothing was written: {why}")
    return command


async def _write(client: Client, before: RunCache, command: Command, command_id: str) -> int | None:
    """The revision of the write; None, with nothing written, when the run has changed since it was read."""
    keys = before.keys
    guards = [Compare.mod_revision(keys.agreed, "==", before.agreed_revision)]
    guards += [Compare.present(key) for key in list(before.members)[:1]]
    if COMMAND_KINDS[command.kind].argument == "checkpoint":
        guards.append(Compare.present(keys.checkpoint(command.name or "")))
    try:
        result = await client.txn(guards, [Op.put(keys.command(command_id), command.encode())])
    except (EtcdFull, EtcdUnavailable) as error:
        revision = await _settled(client, keys, command_id) if error.applied_unknown else None
        if revision is None:
            raise
        return revision
    return result.revision if result.succeeded else None


async def _settled(client: Client, keys: Keys, command_id: str) -> int | None:
    """The revision of a write whose reply was lost, if etcd holds the command or its result; None when that is unknown.
    Single reads, because the client repeats them; it does not repeat a txn."""
    try:
        found = await client.get(keys.command(command_id))
        if found is not None:
            return found.mod_revision
        record = await client.get(keys.declined_of(command_id))
        declined = Declined.decode_or_none(record.value) if record is not None else None
        if declined is not None:
            return declined.revision
        newest = await client.range(keys.plans, newest_first=True, limit=_PLANS_READ)
    except EtcdUnavailable:
        return None
    plans = (Plan.decode_or_none(kv.value) for kv in newest.kvs if not kv.key.endswith("/decision"))
    return next((plan.revision for plan in plans if plan is not None and plan.change_id == command_id), None)


def _why_refused(cache: RunCache, command: Command) -> str | None:
    """Why the command cannot be carried out, with the fix; None when it can, as far as is known. Needs the run's
    commands; for one that names an action or a checkpoint the metrics of some ranks, and the checkpoints."""
    expected, last = _expected(cache)
    why = why_refused(command, _conditions(cache, expected))
    kind = COMMAND_KINDS[command.kind]
    if why is not None:
        now = why_refused(command, _conditions(cache, cache.directive))
        if now is not None or last is None:
            return (now or why) + _where_paused(cache, command) + _hint(cache, kind)
        by = f" by {one_line(last.author)}" if last.author else ""
        return f"a {last.kind}{by} is already in progress: 'instep status {cache.keys.run}' shows its progress"
    if kind.argument == "action":
        return _why_no_action(cache, command.name or "")
    return _why_no_restore(cache) if kind.argument == "checkpoint" else None


def _conditions(cache: RunCache, directive: Directive) -> Conditions:
    by_step = sorted(cache.saved, key=lambda name: cache.saved[name].manifest.step)
    return Conditions(directive, by_step, bool(cache.ranks_left()))


def _expected(cache: RunCache) -> tuple[Directive, Command | None]:
    """What the ranks will do after the commands that wait, and the last of these that pauses, resumes or ends the run.
    Its steps mean nothing."""
    directive, last = cache.directive, None
    for command in (pending.command for pending in cache.commands_by_age()):
        if command is None or why_refused(command, _conditions(cache, directive)) is not None:
            continue
        after = directive_after(command, NEVER_STEP, directive, continues_at=NEVER_STEP) or directive
        if _state(after) != _state(directive):
            last = command
        directive = after
    return directive, last


def _state(directive: Directive) -> tuple[bool, bool]:
    return directive.paused_at is not None, directive.ends_at is not None


def _where_paused(cache: RunCache, command: Command) -> str:
    """For a command that pauses a paused run: where that is, and why."""
    now = cache.directive
    sets = COMMAND_KINDS[command.kind].sets(command, Takes(NEVER_STEP, now))
    if now.paused_at is None or sets is None or sets.paused_at is None:
        return ""
    reason = f" ({one_line(now.reason)})" if now.reason else ""
    return f", before step {now.paused_at}{reason}"


def _hint(cache: RunCache, kind: CommandKind) -> str:
    hint = COMMAND_KINDS["stop"].hint if cache.directive.ends_at is not None else kind.hint
    return f"; {hint.format(run=cache.keys.run)}" if hint else ""


def _node_named(cache: RunCache, given: str) -> tuple[str | None, str]:
    """The node of the view that has this name or host; else None and why. Needs the members."""
    nodes = cache.view.nodes if cache.view is not None else {}
    if given in nodes:
        return given, ""
    hosts = {item.member.node: item.member.host for item in cache.members.values() if item.member.node in nodes}
    found = sorted(node for node, host in hosts.items() if host == given)
    if len(found) == 1:
        return found[0], ""
    if found:
        return None, f"{len(found)} nodes are on host {given!r}: name one of {_listed(found)}"
    there = [f"{node} ({one_line(hosts[node])})" if hosts.get(node) else node for node in sorted(nodes)]
    return None, f"no node of the run has the name or host {given!r}; there are {_listed(there)}"


def _offers(cache: RunCache) -> dict[int, tuple[str, ...]]:
    ranks = cache.ranks()
    return {rank: item.actions for rank, item in cache.metrics.items() if item.actions is not None and rank in ranks}


def _declared(cache: RunCache) -> dict[str, set[int]]:
    """By action, the ranks that have reported that they declare it."""
    found: dict[str, set[int]] = {}
    for rank, names in _offers(cache).items():
        for name in names:
            found.setdefault(name, set()).add(rank)
    return dict(sorted(found.items()))


def _why_no_action(cache: RunCache, name: str) -> str | None:
    offers, known = _offers(cache), _declared(cache)
    lacking = sorted(offers.keys() - known.get(name, set()))
    if not lacking:
        return None
    if name in known:
        return (
            f"{counted(len(lacking), 'rank')} did not declare action {name!r} ({format_ranks(lacking)}): all ranks "
            "must (run.action)"
        )
    close = closest(name, known)
    hint = (
        f"did you mean {close}?" if close is not None else f"it declares {_listed(list(known)) or 'none'} (run.action)"
    )
    return f"the training script declares no action {name!r}; {hint}"


def _why_no_restore(cache: RunCache) -> str | None:
    unable = sorted(rank for rank, item in cache.metrics.items() if item.restores is False and rank in cache.ranks())
    if not unable:
        return None
    return (
        f"the script of rank {format_ranks(unable)} cannot load a checkpoint while it runs: it has no Checkpointer and "
        "no run.on_restore function; restart the run to continue from the newest one"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
