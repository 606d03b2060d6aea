"""`instep unset`: deletes desired values. The next start uses those of the script."""

from __future__ import annotations

from typing import Annotated

import typer

from instep.cli import _completion
from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, line


def unset(
    run: RunArgument,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Hyperparameters.", autocompletion=_completion.names),
    ],
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete values that were set: the next start of the run uses the script's own.

    Ranks that train keep the agreed values until all of them start again.
    """
    from instep import control

    done = with_run(lambda client, keys: control.unset_values(client, keys, names), run, etcd, namespace)
    if as_json:
        document(done.to_json())
        return
    if done.names:
        line(f"{run}: {', '.join(done.names)} unset; the next start of all ranks uses the script's values")
    if done.without:
        line(f"{run}: {', '.join(done.without)} had no value in etcd")
