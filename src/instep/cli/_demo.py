"""`instep demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from instep.cli._options import JsonOption


def demo(
    steps: Annotated[int, typer.Option("--steps", help="Steps to train; at least 100.")] = 500,
    ranks: Annotated[int, typer.Option("--ranks", help="Ranks to train on, 2 to 64.")] = 4,
    keep: Annotated[bool, typer.Option("--keep", help="Go on training, for you to steer, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The whole story on one machine, in a minute: train, steer, prove.

    Starts an etcd of its own, trains with torchrun and DDP, changes values while it trains, and shows that every
    rank applied each change at the same step; beside it, what happens without Instep. Exit code 0 only if all of
    it held. Nothing is left behind.
    """
    from instep.demo import main

    code = main(steps, ranks, keep=keep, as_json=as_json)
    if code:
        raise typer.Exit(code)
