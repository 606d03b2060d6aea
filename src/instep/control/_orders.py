"""Whether a command can be carried out as things stand, and how commands are called. Pure.

The leader decides in the end: a command that is overtaken on its way is declined by it, with the same words.
"""

from __future__ import annotations

from collections.abc import Mapping

from instep.control._picture import Picture
from instep.control._text import closest, counted
from instep.protocol.commands import PendingCommand, directive_after, why_not
from instep.protocol.records import Command, Directive, format_ranks
from instep.text import one_line

_CURES: Mapping[str, str] = {
    "pause": "'instep resume {run}' lets it go on",
    "resume": "'instep status {run}' says how it is",
    "stop": "'instep status {run}' says how far it is",
}
_NAMED = 10
_NEVER_STEP = -1
"""Where a command that still waits will take effect is not known yet."""


def what_of(kind: str, name: str | None, *, save: bool = True, node: str | None = None) -> str:
    """`stop`, `act evaluate`, `restore 1200-57`: a command as people call it."""
    if kind == "action":
        return f"act {one_line(name or '')}"
    if kind == "stop":
        return "stop" + (f" for node {one_line(node)}" if node else "") + ("" if save else " without a save")
    return f"{kind} {one_line(name)}" if name else kind


def why_refused(picture: Picture, command: Command) -> str | None:
    """Why the command cannot be carried out, with the cure; None when it can, as far as is known. Needs the run's
    commands, and of an action or a restore the metrics of some ranks, of a restore the checkpoints."""
    manifests = {name: saved.manifest for name, saved in picture.saved.items()}
    order = PendingCommand("", 0, command)
    why = why_not(order, expected_course(picture), manifests, somebody_left=bool(picture.ranks_left()))
    if why is not None:
        now = why_not(order, picture.course, manifests, somebody_left=bool(picture.ranks_left()))
        return _cured(picture, command, now) if now is not None else _waiting(picture, command)
    if command.kind == "action":
        return _why_no_action(picture, command.name or "")
    return _why_no_restore(picture) if command.kind == "restore" else None


def expected_course(picture: Picture) -> Directive:
    """What the ranks will do when the commands that stand have been carried out; its steps mean nothing."""
    course = picture.course
    for order in picture.orders_by_age():
        if order.command is not None and order.command.kind in ("pause", "resume", "stop"):
            refused = why_not(order, course, {}, somebody_left=False) is not None
            course = course if refused else directive_after(order.command, _NEVER_STEP, course) or course
    return course


def declared(picture: Picture) -> dict[str, set[int]]:
    """Ranks that have declared an action, by its name, as far as they have said so."""
    found: dict[str, set[int]] = {}
    for rank, actions in _offers(picture).items():
        for name in actions:
            found.setdefault(name, set()).add(rank)
    return dict(sorted(found.items()))


def node_named(picture: Picture, given: str) -> tuple[str | None, str]:
    """The node of the view that has this name or host; else None and why. Needs the members."""
    nodes = picture.view.nodes if picture.view is not None else {}
    if given in nodes:
        return given, ""
    hosts = {item.member.node: item.member.host for item in picture.members.values() if item.member.node in nodes}
    found = sorted(node for node, host in hosts.items() if host == given)
    if len(found) == 1:
        return found[0], ""
    if found:
        return None, f"{len(found)} nodes are on host {given!r}: name one of {_listed(found)}"
    there = [f"{node} ({one_line(hosts[node])})" if hosts.get(node) else node for node in sorted(nodes)]
    return None, f"no node of the run has the name or host {given!r}; there are {_listed(there)}"


def _cured(picture: Picture, command: Command, why: str) -> str:
    course = picture.course
    where = ""
    if command.kind == "pause" and course.paused_at is not None:
        reason = f" ({one_line(course.reason)})" if course.reason else ""
        where = f", before step {course.paused_at}{reason}"
    cure = _CURES.get(command.kind)
    return why + where + (f"; {cure.format(run=picture.keys.run)}" if cure else "")


def _waiting(picture: Picture, command: Command) -> str:
    """It could be carried out now, but not after the commands that were sent before it."""
    before = next(
        order.command
        for order in reversed(picture.orders_by_age())
        if order.command is not None and order.command.kind in ("pause", "resume", "stop")
    )
    by = f" by {one_line(before.author)}" if before.author else ""
    return f"a {before.kind}{by} is under way already: 'instep status {picture.keys.run}' says how far it is"


def _offers(picture: Picture) -> dict[int, tuple[str, ...]]:
    ranks = picture.ranks()
    return {rank: item.actions for rank, item in picture.metrics.items() if item.actions is not None and rank in ranks}


def _why_no_action(picture: Picture, name: str) -> str | None:
    offers, known = _offers(picture), declared(picture)
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
        f"; did you mean {close}?"
        if close is not None
        else f"; it declares {_listed(list(known)) or 'none'} (run.action)"
    )
    return f"the training script declares no action {name!r}{hint}"


def _why_no_restore(picture: Picture) -> str | None:
    unable = sorted(
        rank for rank, item in picture.metrics.items() if item.restores is False and rank in picture.ranks()
    )
    if not unable:
        return None
    return (
        f"the script of rank {format_ranks(unable)} cannot load a checkpoint while it runs: it has no Checkpointer and "
        "no run.on_restore function; start the run anew to go on from the newest one"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
