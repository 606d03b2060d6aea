"""What a run does beside training on, as rows of its status page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.table import Table
from rich.text import Text

from instep.cli._history import local_time
from instep.control import AttemptsFacts, Status, WaitingFacts, format_bytes


def under_way(now: Status) -> Iterator[tuple[str, Text]]:
    """Labels and facts; nothing that is not so."""
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


def waiting_table(commands: Iterable[WaitingFacts]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", min_width=1)
    for command in commands:
        who = Text(command.author or "", style="dim")
        if command.reason:
            who.append(f" “{command.reason}”", style="")
        table.add_row(command.what, who)
    return table


def _attempts(attempts: AttemptsFacts) -> Text:
    times = "once" if attempts.count == 1 else f"{attempts.count} times"
    limit = "" if attempts.limit is None else f", {attempts.limit} restarts are allowed"
    spent = attempts.limit is not None and attempts.count >= attempts.limit
    text = Text(f"{times}{limit}: {attempts.causes}", style="red" if spent else "")
    for last in attempts.failures[:1]:
        why = f": {last.text}" if last.text else ""
        text.append(f"  last rank {last.rank} on {last.host}, view {last.view}{why}", style="dim")
    return text


def _checkpoint(now: Status) -> Text:
    assert now.checkpoint is not None
    newest = now.checkpoint
    text = Text(f"step {newest.step}")
    at = local_time(newest.committed_at)
    by = f"rank {newest.saved_by}, {format_bytes(newest.bytes)}" + (f", {at}" if at else "")
    text.append(f"  {newest.id} by {by}", style="dim")
    return text
