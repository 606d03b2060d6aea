"""What holds for every test; and Instep's fixtures, also where it is not installed. `chaos` is beside `tests`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from instep.testing import fixtures

if TYPE_CHECKING:
    from chaos.harness.fork_server import ForkServer

sys.path.append(str(Path(__file__).resolve().parents[1]))

# A time limit for one example is a timed test; and the same examples every time, so that a failure is repeatable.
hypothesis.settings.register_profile("instep", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("instep")

# Importing readline, as pytest-xdist does by way of pdb, sets these: output must not depend on it.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Agents and trainers start often: compiling Instep's modules again each time costs 0.25 s of CPU per process, and the
# assertions of all test modules 5 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

SLOW = tuple(f"tests/{name}/" for name in ("chaos", "coordination", "demo", "faults", "run", "torchrun"))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts ranks and torchrun's agents without the seconds that importing torch takes."""
    from chaos.harness.fork_server import ALL_OF_TORCH, ForkServer

    server = ForkServer(ALL_OF_TORCH, "torch.distributed.run")
    yield server
    server.close()


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin under its entry point's name, unless pytest has found that.

    A shell starts background jobs with SIGINT ignored, and all their processes inherit that: tests of Ctrl-C would wait
    for ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.pluginmanager.has_plugin("instep"):
        config.pluginmanager.register(fixtures, "instep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow folders first, so that no process is left with a slow test when the others have ended.

    Many-fold repeats and long freezes run only when asked for: `make test-long`.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW))
    if os.environ.get("INSTEP_LONG") == "1":
        return
    skip = pytest.mark.skip(reason="long: INSTEP_LONG=1 or make test-long runs it")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)
