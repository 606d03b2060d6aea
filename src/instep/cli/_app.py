"""The commands put together, and the border where errors become sentences and exit codes."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from instep.cli import (
    _checkpoints,
    _commands,
    _delete,
    _demo,
    _diff,
    _get,
    _history,
    _local,
    _registry,
    _reset,
    _rollback,
    _runs,
    _set,
    _status,
    _unset,
)
from instep.cli._options import EtcdOption, NamespaceOption, remember
from instep.cli._output import as_typed, line, take_any_text, talk
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
    """Parse the arguments, do the command, end the process."""
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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    remember(etcd, namespace)


app.command("demo")(_demo.demo)
app.command("local")(_local.local)
app.command("runs")(_runs.runs)
app.command("status")(_status.status)
app.command("get")(_get.get)
app.command("set")(_set.set_values)
app.command("unset")(_unset.unset)
app.command("history")(_history.history)
app.command("diff")(_diff.diff)
app.command("rollback")(_rollback.rollback)
app.command("pause")(_commands.pause)
app.command("resume")(_commands.resume)
app.command("stop")(_commands.stop)
app.command("checkpoint")(_commands.checkpoint)
app.command("checkpoints")(_checkpoints.checkpoints)
app.command("adopt")(_registry.adopt)
app.command("forget")(_registry.forget)
app.command("restore")(_commands.restore)
app.command("act")(_commands.act)
app.command("reset")(_reset.reset)
app.command("delete")(_delete.delete)
