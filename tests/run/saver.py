"""A worker that executes one command at a time from its standard input: a line of JSON in, a line out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import instep


class Hyper(instep.Hyperparameters):
    lr: float = 0.1


class Saver:
    def __init__(self, run: instep.Run[Any], folder: str) -> None:
        self.run = run
        self.folder = folder
        self.slot: Any = None
        self.readers: dict[str, contextlib.ExitStack] = {}

    def do(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        try:
            answer = dict(getattr(self, what)(**arguments) or {})
        except instep.InstepError as error:
            facts = {name: value for name, value in vars(error).items() if isinstance(value, int | float | str | tuple)}
            answer = {"error": type(error).__name__, "text": str(error), "exit_code": error.exit_code, **facts}
        except KeyError as error:
            answer = {"error": "KeyError", "text": str(error)}
        return {**answer, "took_s": time.monotonic() - began, "at": time.monotonic()}

    def step(self, step: int) -> dict[str, Any]:
        self.run.boundary(step)
        return {"leads": self.run.leads, "token": self.run._session.token, "config": dict(self.run.config)}

    def hear(self, wait_s: float = 0.0) -> dict[str, Any]:
        """Reads messages of the agent without passing a boundary."""
        checkpoints = self.run.checkpoints
        checkpoints.wait(lambda: False, wait_s)
        saved, saving = checkpoints.saved, checkpoints.saving
        return {
            "leads": self.run.leads,
            "saved": saved and {"id": saved.id, "step": saved.step},
            "saving": saving and {"id": saving.id, "rank": saving.rank},
        }

    def has(self, step: int) -> dict[str, Any]:
        return {"has": self.run.checkpoints.has(step)}

    def open(self, step: int, folder: str | None = None) -> dict[str, Any]:
        self.slot = self.run.checkpoints.open(step, folder or self.folder)
        return {"path": str(self.slot.path), "id": self.slot.id}

    def write(self, name: str = "state", text: str = "x") -> None:
        (self.slot.path / name).write_text(text)

    def commit(self) -> dict[str, Any]:
        return {"committed": self.slot.commit(), "state": self.slot.state}

    def hand_in_again(self, times: int = 1) -> None:
        """As after a connection that was lost while an answer was in flight."""
        self.run._session.send(*[self.slot._said] * times)

    def abandon(self) -> None:
        self.slot.abandon()

    def save(self, step: int, text: str = "x", folder: str | None = None) -> dict[str, Any]:
        """As a training script does."""
        with self.run.checkpoint(step, folder=folder or self.folder) as slot:
            if slot is None:
                return {"slot": None}
            (slot.path / "state").write_text(text)
        return {"slot": slot.id, "state": slot.state, "path": str(slot.path)}

    def fail_to_save(self, step: int, full: bool = False) -> None:
        with self.run.checkpoint(step, folder=self.folder):
            if full:
                Path("/dev/full").write_text("x")
            raise KeyError("state")

    def list(self) -> dict[str, Any]:
        found = self.run.checkpoints.list()
        return {"ids": [item.id for item in found], "newest": _facts(found[0]) if found else None}

    def forget(self, ids: list[str]) -> dict[str, Any]:
        return {"ids": list(self.run.checkpoints.forget(ids))}

    def resume(self, refuse: list[str] = [], timeout_s: float = 30, slow_s: float = 0) -> dict[str, Any]:  # noqa: B006
        seen: list[str] = []

        def verify(manifest: Any) -> str | None:
            seen.append(manifest.id)
            time.sleep(slow_s)
            (Path(manifest.path) / "state").read_text()
            return "its state is damaged" if manifest.id in refuse else None

        manifest = self.run.checkpoints.resume(verify, timeout_s)
        return {"id": manifest and manifest.id, "seen": seen, "refused": self.run.checkpoints.refused}

    def resume_and_read(self, hold: str) -> dict[str, Any]:
        """Reads the agreed checkpoint once the file `hold` is gone."""
        manifest = self.run.checkpoints.resume()
        assert manifest is not None
        Path(hold).with_suffix(".seen").touch()
        while Path(hold).exists():
            time.sleep(0.005)
        with self.run.checkpoints.reading(manifest):
            return {"id": manifest.id}

    def read(self, id: str) -> None:
        manifest = next(item for item in self.run.checkpoints.list() if item.id == id)
        self.readers[id] = stack = contextlib.ExitStack()
        stack.enter_context(self.run.checkpoints.reading(manifest))

    def read_gone(self, id: str, step: int) -> None:
        """A checkpoint that is no longer in the registry."""
        newest = self.run.checkpoints.list()[0]
        with self.run.checkpoints.reading(dataclasses.replace(newest, id=id, step=step)):
            raise AssertionError("it is read")

    def read_on(self, id: str) -> None:
        self.readers.pop(id).close()

    def close(self) -> None:
        self.run.close()


def _facts(manifest: Any) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}


def say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def main(kind: type[Saver] = Saver) -> int:
    logging.basicConfig(level=logging.INFO)
    try:
        run = instep.join("gpt-a", Hyper, timeout_s=60, take_over="TAKE_OVER" in os.environ)
    except instep.InstepError as error:
        say({"error": type(error).__name__, "text": str(error)})
        return error.exit_code
    say({"n": 0, "leads": run.leads, "view": run.view})
    saver = kind(run, sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        say({"n": order.pop("n"), **saver.do(order.pop("do"), order)})
    run.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
