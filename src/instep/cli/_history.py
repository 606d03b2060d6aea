"""`instep history`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli._leaders import leaders_table, take_overs
from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, line, show, talk

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from instep.control import Entry


def history(
    run: RunArgument,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many changes and commands, 1 to 1000.")] = 20,
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="FILE", help="Write the schedule that the run was trained with; '-': stdout."),
    ] = None,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was changed or commanded, by whom, why, and what became of it; the newest first.

    With --export, write which values held at which step instead: for instep.join(..., replay=FILE).
    """
    from instep import control

    if export is not None:
        from instep.cli._export import tell_export

        schedule = with_run(control.schedule, run, etcd, namespace)
        tell_export(schedule, export, as_json=as_json)
        return
    found = with_run(lambda client, keys: control.history(client, keys, limit), run, etcd, namespace)
    if as_json:
        document(found.to_json())
        return
    if found.entries:
        show(history_table(found.entries))
    else:
        talk(f"run {run} has had no changes yet")
    for failed in found.failed_saves[:limit]:
        where = f"rank {failed.rank} on {failed.host}"
        line(f"{local_time(failed.at)}  step {failed.step} was not saved, {where}: {failed.reason}")
    for epoch in found.epochs:
        line(f"{local_time(epoch.at)}  {epoch.sentence}")
    if changed_hands := take_overs(found.leaders):
        show(leaders_table(changed_hands))


def history_table(entries: Iterable[Entry], *, cut: bool = False) -> Table:
    """One row a change or a command: its plan, what became of it, what it was, who wanted it and why.

    With `cut` each is one line, however long it is.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for no_wrap in (True, True, True, False, False):
        table.add_column(overflow="fold", no_wrap=no_wrap, min_width=1)
    for entry in entries:
        number = f"#{entry.plan}" if entry.plan is not None else f"v{entry.view}" if entry.view is not None else "–"
        what, who = Text(entry.what), Text(entry.author or "", style="dim")
        if entry.reason:
            who.append(f" “{entry.reason}”", style="")
        opened = Text(local_time(entry.opened_at), style="dim")
        if cut:
            for text in (what, who):
                text.no_wrap, text.overflow = True, "ellipsis"
        table.add_row(Text(number, style="dim"), opened, _outcome(entry), what, who)
        for remark in _remarks(entry) if not cut else ():
            table.add_row("", "", "", Text(remark, style="dim"), "")
    return table


def _outcome(entry: Entry) -> Text:
    from instep.cli._style import OUTCOME

    text = OUTCOME.text(entry.outcome)
    if entry.outcome in ("applied", "started"):
        text.append(f" at step {entry.step}" if entry.step is not None else "", style="")
    elif entry.outcome in ("open", "committed"):
        text.append(f" for step {entry.gate}", style="")
    return text


def _remarks(entry: Entry) -> list[str]:
    remarks = [entry.refusal] if entry.refusal else []
    if entry.restored is not None:
        remarks.append(f"restored: etcd had lost it, and the ranks wrote it back in epoch {entry.restored}")
    if entry.drift:
        from instep.control import drift_sentence

        remarks.append(drift_sentence(entry.drift))
    remarks += [f"attempt #{attempt.plan} for step {attempt.gate}: {attempt.reason}" for attempt in entry.attempts]
    return remarks


def local_time(opened_at: str | None) -> str:
    """`11-23 05:30:27` in the time zone of whoever looks; empty when the plan does not say."""
    try:
        return datetime.fromisoformat(opened_at or "").astimezone().strftime("%m-%d %H:%M:%S")
    except (ValueError, OSError, OverflowError):
        return ""
