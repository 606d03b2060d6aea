"""A status as a page: labels on the left, facts on the right; nothing that is empty is shown."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from instep.cli._fit import Page
from instep.cli._history import history_table
from instep.cli._rendezvous import nodes_table, torchrun_rows
from instep.cli._style import STATE
from instep.cli._under_way import under_way, waiting_table
from instep.cli._values import values_table
from instep.control import NodeWaiting, PlanFacts, RankFacts, Status, StepFacts, drift_sentence

_METRICS_SHOWN = 6
_IMPORTANT = ("plan", "commands", "recent", "values", "nodes")
"""Sections of the page, the one that is cut last first."""


def status_page(now: Status, *, trouble: str | None = None, hint: str = "", cut: bool = False) -> Page:
    """The page; `trouble` says that what it shows may be old, and why. With `cut` recent changes are one line each."""
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
    return Page(Group(_title(now), _facts(now)), list(sections.values()), important, Group(*foot))


def _title(now: Status) -> Text:
    title = Text(now.run, style="bold")
    title.append("  ")
    title.append_text(STATE.text(now.state))
    if now.view is not None:
        nodes = f"{now.view.nodes} node{'' if now.view.nodes == 1 else 's'}"
        ranks = f"{now.view.world_size} rank{'' if now.view.world_size == 1 else 's'}"
        title.append(f"  {ranks} on {nodes}, view {now.view.number}", style="dim")
    return title


def _facts(now: Status) -> Table:
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


def _values_of(now: Status) -> str:
    if now.replays is None:
        return "values"
    return f"values at the start of the schedule that is replayed ({now.replays})"


def _heading(text: str) -> Group:
    return Group(Text(""), Text(text, style="dim"))


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2), expand=False)


def _ranks(ranks: RankFacts) -> Text:
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


def _steps(steps: StepFacts) -> str:
    if steps.lowest == steps.highest:
        text = str(steps.highest)
    else:
        text = ", ".join(f"{group.step} (rank {group.ranks})" for group in steps.groups)
        text = text if len(text) <= 60 else f"{steps.lowest} to {steps.highest}"
    if steps.step_time_s is not None:
        text += f", {_duration(steps.step_time_s)} a step"
    return text


def _metrics(steps: StepFacts) -> str:
    shown = list(steps.metrics.items())[:_METRICS_SHOWN]
    more = " …" if len(steps.metrics) > len(shown) else ""
    return "  ".join(f"{name} {value:.4g}" for name, value in shown) + f"{more}  (rank {steps.metrics_rank})"


def _plan(plan: PlanFacts) -> Group:
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
