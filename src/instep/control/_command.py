"""Commands to a run: checked against how it is first, then written, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from instep.control._change import TRIES, change_by
from instep.control._discover import run_names
from instep.control._facts import Facts
from instep.control._load import PAGE_SIZE
from instep.control._orders import node_named, what_of, why_refused
from instep.control._picture import Picture
from instep.control._runs import run_not_found, state_of_workers
from instep.errors import CommandRefused, EtcdFull, EtcdUnavailable, NotRunning
from instep.etcd import Client, Compare, Listing, Op
from instep.names import check_action_name
from instep.protocol.keys import Keys
from instep.protocol.records import Command, CommandKind, Declined, Plan

LATEST = "latest"
"""The newest committed checkpoint, where one is named."""
_LOOKED_AT = 64
"""Ranks whose registration and offer are read; the others are asked by the plan."""
_PLANS_LOOKED_AT = 24


@dataclass(frozen=True, slots=True)
class Sent(Facts):
    """A command that is in etcd. `revision` is its place in etcd's order, `command_id` its key."""

    run: str
    revision: int
    command_id: str
    kind: CommandKind
    name: str | None
    """The action's, or the checkpoint's to go back to."""
    save: bool
    """Of a stop: whether a checkpoint is saved first."""
    node: str | None
    """Of a stop: the node that is about to go."""
    author: str
    reason: str | None
    asked_at_s: float = field(default=0.0, metadata={"json": False})
    """Monotonic time before the write, where the receipt's time starts."""
    epoch: int = field(default=0, metadata={"json": False})
    """The run's epoch at the write: a later one tells that etcd's history has gone back since."""

    @property
    def what(self) -> str:
        return what_of(self.kind, self.name, save=self.save, node=self.node)

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is expected of it."""
        return self.kind == "checkpoint" or (self.kind == "stop" and self.save)


async def send(
    client: Client,
    keys: Keys,
    kind: CommandKind,
    *,
    name: str | None = None,
    save: bool = True,
    node: str | None = None,
    author: str | None = None,
    reason: str | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Sent:
    """Write a command, with who wants it and why. `name` is the action's, or the checkpoint's to go back to (its id,
    or `latest`); `save` and `node` (its name or host) are for a stop.

    Whether it can be carried out is checked before anything is written, and it is written only while what was
    checked stands. All ranks do it at one step, or the run declines it: see `follow`. Raises RunNotFound, NotRunning,
    CommandRefused, SettingsError, or EtcdUnavailable, whose `applied_unknown` tells that it may have been written.
    """
    asked_at_s = monotonic()
    by = change_by(author, reason)
    if kind == "action":
        check_action_name(name)
    command = Command(kind=kind, name=name, save=save, node=node, author=by.author, reason=by.reason)
    for _ in range(TRIES):
        before = await _look(client, keys, command)
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
        f"nothing was written: the state of {keys.run} changed {TRIES} times while it was looked at; try again"
    )


async def _look(client: Client, keys: Keys, command: Command) -> Picture:
    """What a command is checked against. Raises RunNotFound and NotRunning."""
    everyone = 0 if command.node is not None else _LOOKED_AT
    ops = [Op.get(keys.agreed), Op.get(keys.view), Op.get(keys.epoch), Op.range(keys.left), Op.range(keys.commands)]
    ops += [Op.range(keys.members, limit=everyone), Op.range(keys.root, limit=1)]
    if command.kind in ("action", "restore"):
        ops.append(Op.range(keys.metrics, limit=_LOOKED_AT))
    if command.kind == "restore":
        ops.append(Op.range(keys.checkpoints))
    result = await client.txn([], ops)
    picture = Picture(keys)
    for part in result.results:
        if isinstance(part, Listing):
            picture.put_all(part.kvs)
    picture.revision = result.revision
    if picture.empty:
        raise run_not_found(keys, await run_names(client, keys.namespace))
    if picture.live and not _is_manned(picture) and everyone:
        listing = await client.range(keys.members, revision=picture.revision, page_size=PAGE_SIZE)
        picture.put_all(listing.kvs)
    why = why_not_running(picture)
    if why is not None:
        raise NotRunning(f"nothing was written: {why}")
    return picture


def why_not_running(picture: Picture) -> str | None:
    """Why nobody would do what is asked of the run, with the cure; needs the members, or those of the view."""
    run, state = picture.keys.run, state_of_workers(picture)
    if picture.live and not _is_manned(picture):
        return f"run {run} is starting, its ranks do not train yet: try again when 'instep status {run}' says they do"
    if picture.live and picture.ended():
        state = "ended"
    reasons = {
        "ended": "all its ranks have ended cleanly",
        "stopped": "no worker of it is alive",
        "new": "no worker has ever joined it",
    }
    return f"run {run} is not running: {reasons[state]}; start it first" if state in reasons else None


def _is_manned(picture: Picture) -> bool:
    """Whether somebody of the view lives: a start of new workers deletes what was asked of those before."""
    if picture.view is None:
        return False
    trains = picture.view.workers()
    return any(item.member.worker in trains for item in picture.members.values())


def _checked(picture: Picture, command: Command) -> Command:
    """The command with its names resolved. Raises CommandRefused."""
    if command.node is not None:
        node, why_not = node_named(picture, command.node)
        if node is None:
            raise CommandRefused(f"nothing was written: {why_not}")
        command = command.model_copy(update={"node": node})
    if command.kind == "restore" and command.name == LATEST and picture.latest is not None:
        command = command.model_copy(update={"name": picture.latest.id})
    why = why_refused(picture, command)
    if why is not None:
        raise CommandRefused(f"nothing was written: {why}")
    return command


async def _write(client: Client, before: Picture, command: Command, command_id: str) -> int | None:
    """The revision that wrote it; None, and nothing written, when the run is no longer as it was looked at."""
    keys = before.keys
    guards = [Compare.mod_revision(keys.agreed, "==", before.agreed_revision)]
    guards += [Compare.present(key) for key in list(before.members)[:1]]
    if command.kind == "restore":
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
    """The revision of a write whose reply was lost, if it is in etcd or what became of it; None when that cannot be
    said. Single reads, since they are repeated where a txn is not."""
    try:
        found = await client.get(keys.command(command_id))
        if found is not None:
            return found.mod_revision
        record = await client.get(keys.declined_of(command_id))
        declined = Declined.decode_or_none(record.value) if record is not None else None
        if declined is not None:
            return declined.revision
        newest = await client.range(keys.plans, newest_first=True, limit=_PLANS_LOOKED_AT)
    except EtcdUnavailable:
        return None
    plans = (Plan.decode_or_none(kv.value) for kv in newest.kvs if not kv.key.endswith("/decision"))
    return next((plan.revision for plan in plans if plan is not None and plan.change_id == command_id), None)
