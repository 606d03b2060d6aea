"""Commands that only read: `instep runs`, `get`, `history`, `diff` and `checkpoints`. `status` is in `_status.py`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli import _completion
from instep.cli._options import RunArgument, Target
from instep.cli._output import document, json_text, line, local_time, show, talk
from instep.errors import SettingsError

if TYPE_CHECKING:
    from instep.control import RunHistory, ValueStatus
    from instep.schedule import Schedule


def runs(*, target: Target) -> None:
    """List the runs that etcd knows: live or not, ranks, leader, step."""
    from instep import control

    found = target.with_client(control.runs)
    if target.as_json:
        document(found.to_json())
    elif found.runs:
        from instep.cli._tables import runs_table

        show(runs_table(found))
        if found.left_out:
            more = "1 more run is" if found.left_out == 1 else f"{found.left_out} more runs are"
            talk(
                f"{more} in {found.namespace}, changed longer ago than these: 'instep status RUN' shows one by its "
                "name, and 'instep delete RUN' deletes one that has ended"
            )
    else:
        talk(
            f"no run is in {found.namespace}: one appears when a training script calls instep.join, or torchrun "
            "is started with --rdzv-backend=etcd3"
        )


def get(
    run: RunArgument,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One hyperparameter. Default: all.", autocompletion=_completion.names),
    ] = None,
    *,
    target: Target,
) -> None:
    """Show the agreed values, and the desired ones that differ.

    With NAME, stdout holds the agreed value alone, as JSON: for scripts.
    """
    from instep import control

    found = target.with_run(run, lambda client, keys: control.get(client, keys, name))
    if target.as_json:
        document(found.to_json())
    elif name is not None:
        _print_value(found.values[0])
    elif found.values:
        from instep.cli._tables import values_table

        show(values_table(found.values))
    else:
        talk(f"run {run} has no hyperparameters yet")


def _print_value(value: ValueStatus) -> None:
    from instep.control import format_value
    from instep.scalar import format_scalar

    if value.has_agreed:
        json_text(format_scalar(value.agreed))
    else:
        talk(f"{value.name} has no agreed value yet")
    if value.state != "agreed":
        talk(f"desired {format_value(value.desired)}, {value.state}: {value.why}")


def diff(
    run: RunArgument,
    before: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A plan's number in 'instep history', 'v3' for the start of view 3, 'start', or 'now'."
        ),
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    *,
    target: Target,
) -> None:
    """Show which values differ between two moments: as they were after plan A, and after plan B."""
    from instep import control

    for moment in (before, after):
        control.parse_moment(moment)
    found = target.with_run(run, lambda client, keys: control.diff(client, keys, before, after))
    if target.as_json:
        document(found.to_json())
    elif found.changes:
        from instep.cli._tables import diff_table

        show(diff_table(found))
    else:
        talk(f"no value of run {run} differs between {found.before} and {found.after}")


def checkpoints(run: RunArgument, *, target: Target) -> None:
    """List the committed checkpoints, the newest first. A restart resumes from the one marked latest."""
    from instep import control

    found = target.with_run(run, control.checkpoints)
    if target.as_json:
        document(found.to_json())
    elif found.checkpoints:
        from instep.cli._tables import checkpoints_table

        show(checkpoints_table(found))
    else:
        talk(f"run {run} has no committed checkpoint")


def history(
    run: RunArgument,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many changes and commands, 1 to 1000.")] = 20,
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="FILE", help="Write the schedule that the run was trained with; '-': stdout."),
    ] = None,
    *,
    target: Target,
) -> None:
    """Show what was changed or commanded, by whom, why, and the result; the newest first.

    With --export, write which values held at which step instead: for instep.join(..., replay=FILE).
    """
    from instep import control

    if export is not None:
        _export(target.with_run(run, control.schedule), export, as_json=target.as_json)
        return
    found = target.with_run(run, lambda client, keys: control.history(client, keys, limit))
    if target.as_json:
        document(found.to_json())
    else:
        _print_history(found, limit)


def _print_history(found: RunHistory, limit: int) -> None:
    from instep.cli._tables import history_table, leader_changes, leaders_table

    if found.entries:
        show(history_table(found.entries))
    else:
        talk(f"run {found.run} has had no changes yet")
    for failed in found.failed_saves[:limit]:
        where = f"rank {failed.rank} on {failed.host}"
        line(f"{local_time(failed.at)}  step {failed.step} was not saved, {where}: {failed.reason}")
    for epoch in found.epochs:
        line(f"{local_time(epoch.at)}  {epoch.sentence}")
    if changed_hands := leader_changes(found.leaders):
        show(leaders_table(changed_hands))


def _export(schedule: Schedule, file: str, *, as_json: bool) -> None:
    """Write a schedule to a file; `-` is stdout. With `as_json`, stdout names the file."""
    if file == "-":
        json_text(schedule.encode().rstrip("\n"))
        return
    _write(Path(file), schedule.encode())
    if as_json:
        document({"run": schedule.run, "file": file, "digest": schedule.digest, "changes": len(schedule.changes)})
        return
    line(file)
    changes = "1 change" if len(schedule.changes) == 1 else f"{len(schedule.changes)} changes"
    talk(f"{changes} after the start values: instep.join(..., replay={file!r}) trains with them again")


def _write(path: Path, text: str) -> None:
    """Write the whole file, or leave it as it was. Raises SettingsError if it cannot be written."""
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a pipe, such as a shell's >(...)
            return
        if not path.parent.is_dir():
            raise SettingsError(f"the folder of {str(path)!r} does not exist: create it first")
        descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(unfinished, 0o666 & ~_umask())
            os.replace(unfinished, path)
        except BaseException:
            os.unlink(unfinished)
            raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"the schedule cannot be written to {str(path)!r}: {reason}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
