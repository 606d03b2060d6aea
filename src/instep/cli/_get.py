"""`instep get`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli import _completion
from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, json_text, show, talk

if TYPE_CHECKING:
    from instep.control import Value


def get(
    run: RunArgument,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One hyperparameter; default all.", autocompletion=_completion.names),
    ] = None,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the agreed values, and the desired ones that differ.

    With NAME, stdout holds the agreed value alone, as JSON: for scripts.
    """
    from instep import control

    found = with_run(lambda client, keys: control.get(client, keys, name), run, etcd, namespace)
    if as_json:
        document(found.to_json())
    elif name is not None:
        _one(found.values[0])
    elif found.values:
        from instep.cli._values import values_table

        show(values_table(found.values))
    else:
        talk(f"run {run} has no hyperparameters yet")


def _one(value: Value) -> None:
    from instep.control import format_value
    from instep.scalar import format_scalar

    if value.has_agreed:
        json_text(format_scalar(value.agreed))
    else:
        talk(f"{value.name} has no agreed value yet")
    if value.state != "agreed":
        talk(f"desired {format_value(value.desired)}, {value.state}: {value.why}")
