"""The commands that keep etcd tidy, and those for one machine: `unset`, `reset`, `delete`, `adopt`, `forget`, `local`,
`demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli import _completion
from instep.cli._options import AuthorOption, JsonOption, RunArgument, Target, WhyOption
from instep.cli._output import document, line, talk
from instep.errors import CheckpointError, SettingsError
from instep.text import counted

if TYPE_CHECKING:
    from instep.control import Adopted, Deletable, Deleted, Keys
    from instep.etcd import Client


def unset(
    run: RunArgument,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Hyperparameters.", autocompletion=_completion.names),
    ],
    *,
    target: Target,
) -> None:
    """Delete values that were set: the next start of the run uses the script's own.

    Ranks that train keep the agreed values until all of them start again.
    """
    from instep import control

    done = target.with_run(run, lambda client, keys: control.unset_values(client, keys, names))
    if target.as_json:
        document(done.to_json())
        return
    if done.names:
        line(f"{run}: {', '.join(done.names)} unset; the next start of all ranks uses the script's values")
    if done.without:
        line(f"{run}: {', '.join(done.without)} had no value in etcd")


def reset(run: RunArgument, *, why: WhyOption = None, author: AuthorOption = None, target: Target) -> None:
    """Reset the count of a run's failures: it may be restarted again as often as max_restarts allows.

    Needed when joins are refused because the run has failed too often. A clean end of the run resets it, too.
    """
    from instep import control

    was = target.with_run(run, lambda client, keys: control.reset(client, keys, author=author, reason=why))
    if target.as_json:
        document(was.to_json())
        return
    count = was.before.count
    if not count:
        line(f"{run}: no failure was counted, so there is nothing to reset")
        return
    line(f"{run}: reset, {counted(count, 'failure')} forgotten ({was.before.causes})")


def delete(
    run: RunArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    target: Target,
) -> None:
    """Delete a run that has ended from etcd: its values, its history and the records of its checkpoints.

    The files of the checkpoints stay. Refused while a worker of the run is alive. It cannot be undone.
    """
    from instep import control

    if not yes:
        if target.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise SettingsError("nothing was deleted: there is no terminal to ask for confirmation; give --yes")
        _confirm(target.with_run(run, control.deletable))
    deleted = target.with_run(run, control.delete)
    if target.as_json:
        document(deleted.to_json())
        return
    line(f"{run}: deleted, {counted(deleted.keys, 'key')}")
    if deleted.checkpoints:
        talk(f"the files of {_checkpoints(deleted)} stay")


def _confirm(found: Deletable) -> None:
    """Ends the process unless the answer is yes."""
    records = f", with the records of {_checkpoints(found)} (the files stay)" if found.checkpoints else ""
    talk(f"{found.run} ({found.state}): its values and its history are deleted from etcd{records}.")
    if not typer.confirm("Delete it?", err=True):
        talk("nothing was deleted")
        raise typer.Exit(1)


def _checkpoints(found: Deletable | Deleted) -> str:
    number = counted(found.checkpoints, "checkpoint")
    return f"{number} in {', '.join(found.folders)}" if found.folders else number


def adopt(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that the run's Checkpointer is given.")],
    *,
    trust_uid: Annotated[
        list[int] | None, typer.Option("--trust-uid", metavar="UID", help="Also adopt what this user id has saved.")
    ] = None,
    author: AuthorOption = None,
    target: Target,
) -> None:
    """Register checkpoints that etcd has lost its records of: a start resumes from the newest that is complete.

    Each directory identifies its run and its checkpoint. The command checks the sizes of files; the ranks check the
    checksums before they load them.
    """
    from instep import control
    from instep.worker.adoption import find_checkpoints
    from instep.worker.manifest import Owners

    place = folder.expanduser().absolute()
    notes: list[str] = []

    async def put(client: Client, keys: Keys) -> Adopted:
        try:
            found = list(find_checkpoints(place, keys.run, keys.namespace, Owners(place, trust_uid or ())))
        except OSError as error:
            raise CheckpointError(f"{place} cannot be read: {error.strerror or error}") from None
        notes.extend(f"{item.path.name} is skipped: {item.problem}" for item in found if item.record is None)
        records = [item.record for item in found if item.record is not None]
        if not records:
            why = f" ({'; '.join(notes[-3:])})" if notes else ""
            raise CheckpointError(
                f"{place} holds no complete checkpoint of run {keys.run!r} in namespace {keys.namespace}{why}"
            )
        return await control.adopt(client, keys, records, author=author)

    was = target.with_run(run, put)
    for note in notes:
        talk(note)
    if target.as_json:
        document(was.to_json())
        return
    if was.adopted:
        line(f"{run}: adopted {', '.join(was.adopted)}")
    else:
        line(f"{run}: etcd has a record of every checkpoint in {place}")
    if was.latest is not None:
        line(f"a start resumes from {was.latest}")


def forget(
    run: RunArgument,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...",
            help="Checkpoint ids, as 'instep checkpoints' lists them.",
            autocompletion=_completion.checkpoints,
        ),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All checkpoints of the run.")] = False,
    target: Target,
) -> None:
    """Remove the records of checkpoints, so no start resumes from them: their files are gone, or you do not want them.

    Files are not deleted: delete them yourself, or 'instep adopt' registers them again.
    """
    from instep import control

    if bool(ids) == everything:
        raise SettingsError("name the checkpoints to forget, or give --all")
    was = target.with_run(run, lambda client, keys: control.forget(client, keys, ids or (), everything=everything))
    if target.as_json:
        document(was.to_json())
        return
    line(f"{run}: forgotten: {', '.join(was.forgotten) or 'there was no checkpoint'}")
    line(f"a start resumes from {was.latest}" if was.latest is not None else "a start begins at step 0")


def local(
    port: Annotated[
        int, typer.Option(help="Client port; if it is in use, a free one is chosen.", min=0, max=65535)
    ] = 2379,
    data_dir: Annotated[Path | None, typer.Option(help="Data folder; kept between starts.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it in the background and return.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the one that is running.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a real etcd for development, its data kept between starts. Never for production."""
    from instep import local as local_etcd

    if stop:
        if detach:
            raise SettingsError("--stop and --detach exclude each other: give one of them")
        stopped = local_etcd.stop()
        if as_json:
            document({"stopped": stopped})
        else:
            line("stopped" if stopped else "no local etcd was running")
        return
    if not detach:
        if as_json:
            raise SettingsError("--json needs --detach or --stop: in the foreground there is no end to report")
        local_etcd.serve(data_dir, port, tell=talk)
        return
    running = local_etcd.start(data_dir, port, tell=talk)
    if as_json:
        document({name: getattr(running, name) for name in ("endpoint", "pid", "version", "data_dir", "log")})
    else:
        line(running.endpoint)


def demo(
    steps: Annotated[int, typer.Option("--steps", help="Steps between two actions.")] = 30,
    ranks: Annotated[int, typer.Option("--ranks", help="Ranks to train on, 2 to 64.")] = 4,
    keep: Annotated[bool, typer.Option("--keep", help="Continue training, for you to steer, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The whole story on one machine, in a minute: train, steer, crash, recover, stop, prove.

    Starts its own etcd, trains with torchrun and DDP, changes values during training, kills the rank that saves a
    checkpoint, pauses, resumes and stops the run, and shows that every rank did the same at the same step and that
    nothing was lost. Beside it, it shows what happens without Instep. Exit code 0 only if all of it held. Nothing is
    left behind.
    """
    from instep.demo import main

    code = main(steps, ranks, keep=keep, as_json=as_json)
    if code:
        raise typer.Exit(code)
