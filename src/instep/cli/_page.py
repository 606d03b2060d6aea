"""A status as a page: labels on the left, facts on the right; what is empty is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from instep.cli._output import local_time
from instep.cli._tables import history_table, state_text, values_table, waiting_table
from instep.control import (
    AttemptsReport,
    NodeAsking,
    NodeReport,
    NodeWaiting,
    PlanReport,
    RankReport,
    RendezvousReport,
    RestartsReport,
    RunStatus,
    StepReport,
    drift_sentence,
    format_bytes,
)
from instep.text import counted

_METRICS_SHOWN = 6
_IMPORTANT = ("plan", "commands", "recent", "values", "nodes")
"""Sections of the page, the one that is cut last first."""


_LEAST = 4
"""Lines that each section gets before a more important one gets more: an empty one, its heading, one line, a mark."""
_NAMED = 3
_ALL = 6
"""The largest round whose nodes are all listed; of a larger one `_FEW`, preferring absent nodes."""
_FEW = 5
_CAUSES = {"failure": "formed after a failure", "membership": "formed because nodes came or went"}
_STYLES = {"asking": "yellow", "lost": "red", "died": "red", "left": "dim"}


def status_page(now: RunStatus, *, trouble: str | None = None, hint: str = "", cut: bool = False) -> Page:
    """The page of a status. `trouble` is why the status may be old. With `cut`, recent changes are one line each."""
    sections: dict[str, RenderableType] = {}
    if now.rendezvous is not None and now.rendezvous.nodes:
        nodes = _indented(nodes_table(now.rendezvous))
        sections["nodes"] = Group(_heading(f"nodes of round {now.rendezvous.round}"), nodes)
    if now.values:
        sections["values"] = Group(_heading(_values_of(now)), _indented(values_table(now.values)))
    if now.commands:
        sections["commands"] = Group(_heading("commands that wait"), _indented(waiting_table(now.commands)))
    if now.plan is not None:
        sections["plan"] = Group(_heading(f"plan {now.plan.number}, {now.plan.state}"), _indented(_plan(now.plan)))
    if now.recent:
        sections["recent"] = Group(_heading("recent"), _indented(history_table(now.recent, cut=cut)))
    foot: list[RenderableType] = []
    if now.drift:
        foot += [Text(""), Text(drift_sentence(now.drift), style="red")]
    if now.trouble:
        foot += [Text(""), Text(now.trouble, style="red")]
    if trouble:
        foot += [Text(""), Text(f"etcd does not answer; this may be old. {trouble}", style="red")]
    if hint:
        foot += [Text(""), Text(hint, style="dim")]
    important = [list(sections).index(name) for name in _IMPORTANT if name in sections]
    return Page(Group(_title(now), _rows(now)), list(sections.values()), important, Group(*foot))


def _title(now: RunStatus) -> Text:
    title = Text(now.run, style="bold")
    title.append("  ")
    title.append_text(state_text(now.state))
    if now.view is not None:
        nodes, ranks = counted(now.view.nodes, "node"), counted(now.view.world_size, "rank")
        title.append(f"  {ranks} on {nodes}, view {now.view.number}", style="dim")
    return title


def _rows(now: RunStatus) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if now.leader is not None:
        table.add_row("leader", f"rank {now.leader.rank} on {now.leader.host}, token {now.leader.token}")
    if now.view is not None or now.live or now.rendezvous is None:
        table.add_row("ranks", _ranks(now.ranks))
    if len(now.versions) > 1:
        table.add_row("versions", _versions(now.versions))
    for label, text in (*under_way(now), *torchrun_rows(now)):
        table.add_row(label, text)
    if now.steps is not None:
        table.add_row("step", _steps(now.steps))
        if now.steps.metrics:
            table.add_row("report", _metrics(now.steps))
    table.add_row("etcd", f"{now.endpoint}{now.namespace}, revision {now.revision}")
    return table


def _values_of(now: RunStatus) -> str:
    if now.replays is None:
        return "values"
    return f"values at the start of the schedule that is replayed ({now.replays})"


def _heading(text: str) -> Group:
    return Group(Text(""), Text(text, style="dim"))


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2), expand=False)


def _ranks(ranks: RankReport) -> Text:
    text = Text()
    for word, which, style in (
        ("alive", ranks.alive, ""),
        (f"not reporting for {ranks.silent_s} s", ranks.silent, "yellow"),
        ("missing", ranks.missing, "red"),
        ("left", ranks.left, "dim"),
    ):
        if which:
            text.append(f"{', ' if text else ''}{which} {word}", style=style)
    return text or Text("none alive", style="red")


def _versions(versions: dict[str, str]) -> Text:
    named = ", ".join(f"{version} (rank {ranks})" for version, ranks in versions.items())
    return Text(f"{named}: install one version of Instep on every node", style="red")


def _steps(steps: StepReport) -> str:
    if steps.lowest == steps.highest:
        text = str(steps.highest)
    else:
        text = ", ".join(f"{group.step} (rank {group.ranks})" for group in steps.groups)
        text = text if len(text) <= 60 else f"{steps.lowest} to {steps.highest}"
    if steps.step_time_s is not None:
        text += f", {_duration(steps.step_time_s)} a step"
    return text


def _metrics(steps: StepReport) -> str:
    shown = list(steps.metrics.items())[:_METRICS_SHOWN]
    more = " …" if len(steps.metrics) > len(shown) else ""
    return "  ".join(f"{name} {value:.4g}" for name, value in shown) + f"{more}  (rank {steps.metrics_rank})"


def _plan(plan: PlanReport) -> Group:
    first = Text(plan.what)
    if plan.author:
        first.append(f"  {plan.author}", style="dim")
    if plan.reason:
        first.append(f" “{plan.reason}”")
    verb, number = ("armed", plan.armed) if plan.state == "open" else ("applied", plan.applied)
    attempt = f", attempt {plan.attempt}" if plan.attempt > 1 else ""
    parts = [first, Text(f"step {plan.gate}: {verb} on {number}/{plan.ranks} ranks{attempt}")]
    if plan.waiting:
        parts.append(Text(f"waits for {_nodes(plan.waiting, plan.waiting_more)}", style="yellow"))
    return Group(*parts)


def _nodes(waiting: tuple[NodeWaiting, ...], more: int) -> str:
    named = ", ".join(f"rank {node.ranks} on {node.host or node.node}" for node in waiting)
    return f"{named} and {more} more nodes" if more else named


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def under_way(now: RunStatus) -> Iterator[tuple[str, Text]]:
    """What the run does besides training: labels and texts."""
    if now.paused is not None:
        yield "paused", Text(f"before step {now.paused.step}: {now.paused.why}", style="yellow")
    if now.stopping is not None:
        stopping, verb = now.stopping, "stops" if now.live else "stopped"
        saved = "" if stopping.save_at is None else f", step {stopping.save_at} is saved"
        style = "yellow" if now.live else ""
        yield (
            "stop",
            Text(f"{verb} before step {stopping.step}{saved if now.live else ''}: {stopping.why}", style),
        )
    if now.saving is not None:
        yield "saving", Text(f"rank {now.saving.rank} writes the checkpoint of step {now.saving.step}", style="yellow")
    if now.checkpoint is not None:
        yield "saved", _checkpoint(now)
    if (failed := now.failed_save) is not None:
        where = f"rank {failed.rank} on {failed.host}"
        yield "not saved", Text(f"step {failed.step}, {where}: {failed.reason}", style="red")
    if (epoch := now.epoch) is not None:
        style = "red" if epoch.problem else "" if epoch.settled else "yellow"
        yield "epoch", Text(f"{local_time(epoch.at)}  {epoch.sentence}".strip(), style=style)
    if now.attempts is not None:
        yield "failed", _attempts(now.attempts)


def _attempts(attempts: AttemptsReport) -> Text:
    times = "once" if attempts.count == 1 else f"{attempts.count} times"
    limit = "" if attempts.limit is None else f", {attempts.limit} restarts are allowed"
    spent = attempts.limit is not None and attempts.count >= attempts.limit
    text = Text(f"{times}{limit}: {attempts.causes}", style="red" if spent else "")
    for last in attempts.failures[:1]:
        why = f": {last.text}" if last.text else ""
        text.append(f"  last rank {last.rank} on {last.host}, view {last.view}{why}", style="dim")
    return text


def _checkpoint(now: RunStatus) -> Text:
    assert now.checkpoint is not None
    newest = now.checkpoint
    text = Text(f"step {newest.step}")
    at = local_time(newest.committed_at)
    by = f"rank {newest.saved_by}, {format_bytes(newest.bytes)}" + (f", {at}" if at else "")
    text.append(f"  {newest.id} by {by}", style="dim")
    return text


@dataclass(frozen=True, slots=True)
class Page:
    """A page that fits any screen: every section keeps its beginning, the most important ones most.

    `head` and `foot` are shown whole if there is room, `sections` in their order. `important` lists the indexes of
    sections, the one that is cut last first."""

    head: RenderableType
    sections: Sequence[RenderableType]
    important: Sequence[int]
    foot: RenderableType

    def whole(self) -> RenderableType:
        """The whole page, however long it is."""
        return Group(self.head, *self.sections, self.foot)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        height, loose = options.height or console.height, options.update(height=None)
        head, foot = (console.render_lines(part, loose, pad=False) for part in (self.head, self.foot))
        sections = [console.render_lines(part, loose, pad=False) for part in self.sections]
        room = max(0, height - len(foot))
        given = shares([len(head), *map(len, sections)], [0, *(number + 1 for number in self.important)], room)
        mark = [Segment("  …", Style(dim=True))]
        for lines, share in zip([head, *sections], given, strict=True):
            shown = lines if share >= len(lines) else [*lines[: share - 1], mark][:share]
            for line in shown:
                yield from line
                yield Segment.line()
        for line in foot[:height]:
            yield from line
            yield Segment.line()


def shares(sizes: Sequence[int], important: Sequence[int], room: int) -> list[int]:
    """How many lines each section gets. The first in `important` gets all it needs, then each other a few, then more in
    that order. A section that would get hardly more than its heading gets none. Pure."""
    given = [0] * len(sizes)
    first, *others = important
    for number, most in [(first, room), *((one, _LEAST) for one in others), *((one, room) for one in others)]:
        given[number] += min(sizes[number] - given[number], max(0, most - given[number]), room - sum(given))
    poor = [number for number in others if 0 < given[number] < min(_LEAST, sizes[number])]
    if not poor:
        return given
    return shares([0 if number == poor[-1] else size for number, size in enumerate(sizes)], important, room)


def torchrun_rows(now: RunStatus) -> Iterator[tuple[str, Text]]:
    """The rendezvous and restarts of torchrun: labels and texts."""
    found = now.rendezvous
    if found is not None:
        yield "torchrun", _round(found)
        if found.asking:
            yield "waiting", _nodes_asking(found)
        if found.lost and found.state != "stopped":
            yield (
                "absent",
                Text(f"{counted(found.lost_count, 'node')} of the round, group rank {found.lost}", style="red"),
            )
        if found.refused:
            yield "refused", Text("; ".join(found.refused), style="red")
    if now.restarts is not None and now.restarts.limit:
        yield "restart", _restarts(now.restarts)


def nodes_table(found: RendezvousReport) -> Table:
    """One row per node: group rank, host and pid, the ranks of its workers, and its state unless it runs."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", min_width=1)
    for node in shown(found):
        table.add_row(str(node.group_rank), f"{node.host}, pid {node.pid}", _of_node(node))
    more = found.size - len(shown(found))
    if more:
        table.add_row("", Text(f"and {more} more nodes", style="dim"), "")
    return table


def shown(found: RendezvousReport) -> list[NodeReport]:
    if found.size <= _ALL:
        return list(found.nodes)
    well = ("running", "asking")
    chosen = sorted(found.nodes, key=lambda node: (node.state in well, node.group_rank))[:_FEW]
    return sorted(chosen, key=lambda node: node.group_rank)


def _round(found: RendezvousReport) -> Text:
    limits = "" if found.min_nodes is None else f"{found.min_nodes}:{found.max_nodes}"
    text = _of_state(found, limits)
    if found.restarts:
        text.append(f", {found.restarts} {'restart' if found.restarts == 1 else 'restarts'} after failures")
    if not found.readable:
        text.append("; it was written by another version of Instep", style="red")
    return text


def _of_state(found: RendezvousReport, limits: str) -> Text:
    if found.state == "closed":
        by = f" by {found.closed_by}" if found.closed_by else ""
        return Text(f"closed{by} after round {found.round}" if found.round else f"closed{by} before its first round")
    if found.state == "stopped":
        unclosed = f", and round {found.round} was not closed" if found.round else ""
        return Text(f"no node is present{unclosed}", style="red")
    if found.state == "running" or found.wanted:
        text = Text(f"round {found.round}, {counted(found.size, 'node')} of {limits}")
        if found.cause in _CAUSES:
            text.append(f", {_CAUSES[found.cause]}")
        if found.wanted:
            needed = f": {counted(found.needed, 'more node')} needed" if found.needed else ""
            text.append(f", is being replaced{needed}", style="yellow")
        return text
    return Text(f"round {found.round + 1} is being formed{_present(found, limits)}", style="yellow")


def _present(found: RendezvousReport, limits: str) -> str:
    if not limits:
        return ""
    here = f": {counted(found.present, 'node')} of {limits} {'is' if found.present == 1 else 'are'} there"
    if found.needed:
        return f"{here}, {found.needed} more needed"
    return f"{here}, more may still come"


def _nodes_asking(found: RendezvousReport) -> Text:
    total = len(found.asking) + found.asking_more
    named = ", ".join(_place(node) for node in found.asking[:_NAMED])
    more = f" and {total - _NAMED} more" if total > _NAMED else ""
    why = ""
    if found.spares:
        why = ": a spare, the round is full" if total == 1 else f": {found.spares} spares, the round is full"
    return Text(f"{counted(total, 'node')}, {named}{more}{why}", style="yellow")


def _restarts(restarts: RestartsReport) -> Text:
    where = "" if restarts.everywhere else f" on {restarts.host}"
    spent = restarts.count >= restarts.limit
    text = Text(f"{restarts.count} of {restarts.limit}{where} (torchrun)", style="yellow" if spent else "")
    if spent:
        text.append(": the next failure there ends it" if where else ": the next failure ends it")
    return text


def _of_node(node: NodeReport) -> Text:
    text = Text("" if node.ranks is None else f"rank {node.ranks}")
    if node.restarts:
        text.append(f"{'  ' if text else ''}restart {node.restarts} of {node.max_restarts}", style="dim")
    if node.state != "running":
        text.append(f"{'  ' if text else ''}{node.state}", style=_STYLES.get(node.state, ""))
    return text


def _place(node: NodeAsking) -> str:
    return f"{node.host} (pid {node.pid})"
