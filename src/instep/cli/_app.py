"""The command line as a whole, and the place where errors become sentences and exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from instep.cli import _admin, _change, _look
from instep.cli._options import EtcdOption, NamespaceOption, command_line, remember
from instep.cli._output import as_typed, line, take_any_text, talk
from instep.command_kinds import COMMAND_KINDS
from instep.errors import InstepError

app = typer.Typer(
    name="instep",
    help="Keep every rank of a training run in step with its operators.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> None:
    """Parse the arguments, run the command, end the process."""
    take_any_text()
    sys.argv[1:] = map(as_typed, sys.argv[1:])
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("instep: %(message)s"))
    logging.getLogger("instep").addHandler(warnings)
    try:
        app(prog_name="instep")
    except InstepError as error:
        talk(f"instep: {error}")
        sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        from instep import __version__

        line(f"instep {__version__}")
        raise typer.Exit


@app.callback()
def options(
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    remember(etcd, namespace)


def add_commands(app: typer.Typer) -> None:
    """Every command, in the order of the help text."""
    before: dict[str, Callable[..., None]] = {
        "demo": _admin.demo,
        "local": _admin.local,
        "runs": _look.runs,
        "status": _look.status,
        "get": _look.get,
        "set": _change.set_values,
        "unset": _admin.unset,
        "history": _look.history,
        "diff": _look.diff,
        "rollback": _change.rollback,
    }
    after: dict[str, Callable[..., None]] = {
        "checkpoints": _look.checkpoints,
        "adopt": _admin.adopt,
        "forget": _admin.forget,
        "reset": _admin.reset,
        "delete": _admin.delete,
    }
    kinds = {kind.verb: _change.command_of(kind) for kind in COMMAND_KINDS.values()}
    for name, command in {**before, **kinds, **after}.items():
        app.command(name)(command if name in kinds else command_line(command))


add_commands(app)
