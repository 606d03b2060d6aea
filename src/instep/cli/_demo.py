"""`instep demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from instep.cli._options import JsonOption


def demo(
    steps: Annotated[int, typer.Option("--steps", help="Steps from one act to the next.")] = 30,
    ranks: Annotated[int, typer.Option("--ranks", help="Ranks to train on, 2 to 64.")] = 4,
    keep: Annotated[bool, typer.Option("--keep", help="Go on training, for you to steer, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The whole story on one machine, in a minute: train, steer, crash, go on, stop, prove.

    Starts an etcd of its own, trains with torchrun and DDP, changes values while it trains, kills the rank that saves a
    checkpoint, pauses, resumes and stops the run, and shows that every rank did the same at the same step and that
    nothing was lost; beside it, what happens without Instep. Exit code 0 only if all of
    it held. Nothing is left behind.
    """
    from instep.demo import main

    code = main(steps, ranks, keep=keep, as_json=as_json)
    if code:
        raise typer.Exit(code)
