"""A worker that steps, waits at barriers and fails on command from its standard input; it answers in JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

import instep


class Hyper(instep.Hyperparameters):
    lr: float = 0.1


def say(**document: Any) -> None:
    print(json.dumps(document), flush=True)


def facts(error: instep.InstepError) -> dict[str, Any]:
    fields = {name: value for name, value in vars(error).items() if isinstance(value, int | float | str | tuple)}
    return {"error": type(error).__name__, "text": str(error), "exit_code": error.exit_code, **fields}


def barrier(run: instep.Run[Hyper], name: str, timeout_s: float = 60.0) -> dict[str, Any]:
    began = time.monotonic()
    try:
        run.barrier(name, timeout_s)
    except instep.InstepError as error:
        return {**facts(error), "took_s": time.monotonic() - began}
    return {"through": name, "view": run.view, "at": time.monotonic()}


def step(run: instep.Run[Hyper], step: int) -> dict[str, Any]:
    try:
        run.boundary(step)
    except instep.InstepError as error:
        return facts(error)
    return {"step": step, "lr": run.config.lr, "leads": run.leads}


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    try:
        run = instep.join("gpt-a", Hyper, timeout_s=60, take_over="TAKE_OVER" in os.environ)
    except instep.InstepError as error:
        say(n=0, **facts(error))
        return error.exit_code
    say(n=0, view=run.view)
    with run:
        for line in sys.stdin:
            order = json.loads(line)
            number, what = order.pop("n"), order.pop("do")
            if what == "fail":
                raise RuntimeError(order["text"])
            if what == "exit":
                say(n=number)
                sys.exit(order["code"])
            say(n=number, **{"barrier": barrier, "step": step}[what](run, **order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
