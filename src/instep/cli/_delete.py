"""`instep delete`: all keys of a run that has ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, line, talk
from instep.errors import SettingsError

if TYPE_CHECKING:
    from instep.control import Deletable, Deleted


def delete(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a run that has ended from etcd: its values, its history and the records of its checkpoints.

    The files of the checkpoints stay. Refused while a worker of the run is alive. It cannot be undone.
    """
    from instep import control

    if not yes:
        if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise SettingsError("nothing was deleted: there is no terminal to ask for confirmation at; give --yes")
        _ask(with_run(control.deletable, run, etcd, namespace))
    deleted = with_run(control.delete, run, etcd, namespace)
    if as_json:
        document(deleted.to_json())
        return
    line(f"{run}: deleted, {deleted.keys} key{'' if deleted.keys == 1 else 's'}")
    if deleted.checkpoints:
        talk(f"the files of {_checkpoints(deleted)} stay")


def _ask(found: Deletable) -> None:
    """Ends the process unless the answer is yes."""
    records = f", with the records of {_checkpoints(found)} (the files stay)" if found.checkpoints else ""
    talk(f"{found.run} ({found.state}): its values and its history are deleted from etcd{records}.")
    if not typer.confirm("Delete it?", err=True):
        talk("nothing was deleted")
        raise typer.Exit(1)


def _checkpoints(found: Deletable | Deleted) -> str:
    number = f"{found.checkpoints} checkpoint{'' if found.checkpoints == 1 else 's'}"
    return f"{number} in {', '.join(found.folders)}" if found.folders else number
