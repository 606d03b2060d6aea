"""Reports as tables. Green is well, yellow waits, red needs a person, dim is rarely read."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from instep.cli._output import local_time
from instep.control import (
    CheckpointsReport,
    Diff,
    HistoryEntry,
    Runs,
    RunSummary,
    TermReport,
    ValueStatus,
    WaitingReport,
    drift_sentence,
    format_bytes,
    format_value,
)
from instep.text import counted

LEADER_CHANGES_SHOWN = 5
_VALUE = {"pending": "yellow", "rejected": "red"}


_STATES = {
    **dict.fromkeys(("training", "running"), "green"),
    **dict.fromkeys(("paused", "forming"), "yellow"),
    **dict.fromkeys(("ended", "closed", "new"), "dim"),
    "stopped": "red",
}
_OUTCOMES = {
    **dict.fromkeys(("committed", "open", "aborted"), "yellow"),
    **dict.fromkeys(("rejected", "declined"), "red"),
    **dict.fromkeys(("applied", "started"), "green"),
}


def state_text(state: str) -> Text:
    """The state of a run."""
    return Text(state, style=_STATES.get(state, ""))


def runs_table(found: Runs) -> Table:
    """One row per run."""
    by_torchrun = any(run.round is not None for run in found.runs)
    table = _with_header(
        ("run", "state", "ranks", "step", "view", "leader", *(("torchrun",) if by_torchrun else ())),
        right=("ranks", "step", "view"),
    )
    for run in found.runs:
        leader = "" if run.leader_rank is None else f"rank {run.leader_rank} on {run.leader_host}"
        numbers = ("" if number is None else str(number) for number in (run.world_size, run.step, run.view))
        table.add_row(run.name, state_text(run.state), *numbers, leader, *((_torchrun(run),) if by_torchrun else ()))
    return table


def checkpoints_table(found: CheckpointsReport) -> Table:
    """One row per committed checkpoint."""
    names = ("checkpoint", "step", "size", "saved by", "committed", "path", "")
    table = _with_header(names, right=("step", "size"))
    for item in found.checkpoints:
        table.add_row(
            item.id,
            str(item.step),
            format_bytes(item.bytes),
            f"rank {item.saved_by} on {item.host}",
            Text(local_time(item.committed_at), style="dim"),
            item.path,
            Text("latest", style="green") if item.latest else "",
        )
    return table


def diff_table(found: Diff) -> Table:
    """One row per value that differs."""
    table = _grid(4)
    for change in found.changes:
        before = format_value(change.before) if change.was_set else "–"
        after = format_value(change.after) if change.is_set else "–"
        table.add_row(change.name, before, "→", after)
    return table


def values_table(values: Iterable[ValueStatus]) -> Table:
    """One row per hyperparameter: the agreed value, and the desired one if it differs, with what it waits for."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", min_width=1)  # otherwise an empty one takes its space from the others
    for value in values:
        table.add_row(value.name, format_value(value.agreed) if value.has_agreed else "–", _remark(value))
    return table


def history_table(entries: Iterable[HistoryEntry], *, cut: bool = False) -> Table:
    """One row per change or command: its plan, its outcome, what it was, who requested it and why.

    With `cut` each row is one line, however long it is.
    """
    table = Table.grid(padding=(0, 2, 0, 0))
    for no_wrap in (True, True, True, False, False):
        table.add_column(overflow="fold", no_wrap=no_wrap, min_width=1)
    for entry in entries:
        number = f"#{entry.plan}" if entry.plan is not None else f"v{entry.view}" if entry.view is not None else "–"
        what, who = Text(entry.what), _author(entry.author, entry.reason)
        opened = Text(local_time(entry.opened_at), style="dim")
        if cut:
            for text in (what, who):
                text.no_wrap, text.overflow = True, "ellipsis"
        table.add_row(Text(number, style="dim"), opened, _outcome(entry), what, who)
        for remark in _remarks(entry) if not cut else ():
            table.add_row("", "", "", Text(remark, style="dim"), "")
    return table


def waiting_table(commands: Iterable[WaitingReport]) -> Table:
    """One row per command that waits."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", min_width=1)
    for command in commands:
        table.add_row(command.what, _author(command.author, command.reason))
    return table


def leader_changes(leaders: Iterable[TermReport]) -> list[TermReport]:
    """The newest few changes of leader, except those at a start, when the ranks join one after another."""
    found = [leading for leading in leaders if leading.former_rank is not None and not leading.at_start]
    return found[:LEADER_CHANGES_SHOWN]


def leaders_table(leaders: Iterable[TermReport]) -> Table:
    """One row per change of leader: the new leader and its start, the former leader, and why its term ended."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for no_wrap in (True, False):
        table.add_column(overflow="fold", no_wrap=no_wrap)
    for leading in leaders:
        since = Text(local_time(leading.since), style="dim")
        who = Text(f"rank {leading.rank} on {leading.host} leads")
        before = f"before it rank {leading.former_rank} on {leading.former_host}"
        who.append(f"; {before} ({leading.why or 'not known why'})", style="dim")
        table.add_row(since, who)
    return table


def _with_header(names: Iterable[str], *, right: Iterable[str]) -> Table:
    table, numbers = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim"), set(right)
    for name in names:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def _grid(columns: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(columns):
        table.add_column(overflow="fold")
    return table


def _torchrun(run: RunSummary) -> str:
    if not run.round:
        return ""
    return f"round {run.round}" + (f", {counted(run.nodes, 'node')}" if run.nodes else "")


def _author(author: str | None, reason: str | None) -> Text:
    text = Text(author or "", style="dim")
    if reason:
        text.append(f" “{reason}”", style="")
    return text


def _remark(value: ValueStatus) -> Text:
    if value.state == "agreed":
        return Text("fixed" if value.fixed else "", style="dim")
    remark = Text(f"→ {format_value(value.desired)} ", style=_VALUE[value.state])
    remark.append(f"{value.state}: {value.why}", style="")
    return remark


def _outcome(entry: HistoryEntry) -> Text:
    text = Text(entry.outcome, style=_OUTCOMES.get(entry.outcome, ""))
    if entry.outcome in ("applied", "started"):
        text.append(f" at step {entry.step}" if entry.step is not None else "", style="")
    elif entry.outcome in ("open", "committed"):
        text.append(f" for step {entry.gate}", style="")
    return text


def _remarks(entry: HistoryEntry) -> list[str]:
    remarks = [entry.refusal] if entry.refusal else []
    if entry.restored is not None:
        remarks.append(f"restored: etcd had lost it, and the ranks wrote it back in epoch {entry.restored}")
    if entry.drift:
        remarks.append(drift_sentence(entry.drift))
    remarks += [f"attempt #{attempt.plan} for step {attempt.gate}: {attempt.reason}" for attempt in entry.attempts]
    return remarks
