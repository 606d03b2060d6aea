"""`instep local`: a real etcd for development."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instep.cli._options import JsonOption
from instep.cli._output import document, line, talk
from instep.errors import SettingsError


def local(
    port: Annotated[
        int, typer.Option(help="Port for clients; another is taken when it is in use.", min=0, max=65535)
    ] = 2379,
    data_dir: Annotated[Path | None, typer.Option(help="Where its data are kept between starts.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it in the background and return.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the one that runs.")] = False,
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
        document(
            {
                "endpoint": running.endpoint,
                "pid": running.pid,
                "version": running.version,
                "data_dir": running.data_dir,
                "log": running.log,
            }
        )
    else:
        line(running.endpoint)
