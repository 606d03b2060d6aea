"""`instep adopt` and `instep forget`: which checkpoints a run's registry lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli import _completion
from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, line, talk
from instep.cli._receipt import AuthorOption

if TYPE_CHECKING:
    from instep.control import Adopted, Keys
    from instep.etcd import Client


def adopt(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that the run's Checkpointer is given.")],
    trust_uid: Annotated[
        list[int] | None, typer.Option("--trust-uid", metavar="UID", help="Also adopt what this user id has saved.")
    ] = None,
    author: AuthorOption = None,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register checkpoints that etcd has lost its records of: a start resumes from the newest that is complete.

    Each directory identifies its run and its checkpoint. The command checks the sizes of files; the ranks check the
    checksums before they load them.
    """
    from instep import control
    from instep.errors import CheckpointError
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

    was = with_run(put, run, etcd, namespace)
    for note in notes:
        talk(note)
    if as_json:
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
            metavar="[CHECKPOINT]...", help="Ids in 'instep checkpoints'.", autocompletion=_completion.checkpoints
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All checkpoints of the run.")] = False,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the records of checkpoints, so no start resumes from them: their files are gone, or you do not want them.

    Files are not deleted: delete them yourself, or 'instep adopt' registers them again.
    """
    from instep import control
    from instep.errors import SettingsError

    if bool(ids) == everything:
        raise SettingsError("name the checkpoints to forget, or give --all")
    was = with_run(
        lambda client, keys: control.forget(client, keys, ids or (), everything=everything), run, etcd, namespace
    )
    if as_json:
        document(was.to_json())
        return
    line(f"{run}: forgotten: {', '.join(was.forgotten) or 'there was no checkpoint'}")
    line(f"a start resumes from {was.latest}" if was.latest is not None else "a start begins at step 0")
