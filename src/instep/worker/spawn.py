"""Starts the node's agent: exec'd, in a session of its own, with its settings on a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

from instep.errors import AgentError
from instep.runtime import RuntimeFolder, process_environment
from instep.settings import Settings
from instep.system_errors import explained

if TYPE_CHECKING:
    import subprocess

LOG_TAIL_CHARACTERS = 600


def start_agent(folder: RuntimeFolder, run: str, settings: Settings, lock: int, node: str) -> subprocess.Popen[bytes]:
    """Starts an agent and returns its launcher, which ends at once: the agent itself is nobody's child.

    `node` is the node name that it must use, empty if unknown. The agent inherits `lock`, so there is never a second
    one. An agent that cannot serve writes the reason as one line to the launcher's `stdout`, a non-blocking pipe,
    even if the folder has no space for a log. Raises AgentError if no process can be started.
    """
    import subprocess  # 5 ms that `import instep` saves: one worker per node needs it

    try:
        with _log_of(folder) as log:
            launcher = subprocess.Popen(
                [sys.executable, "-P", "-m", "instep.agent", str(folder.path), run, str(lock), node],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
                env=_environment(),
            )
    except OSError as error:
        raise AgentError(f"the node's agent could not be started with {sys.executable}: {explained(error)}") from None
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    os.set_blocking(launcher.stdout.fileno(), False)
    try:
        launcher.stdin.write(settings.to_json().encode())
        launcher.stdin.close()
    except BrokenPipeError:
        pass  # it ended at once; the caller's timeout shows its log
    return launcher


def _log_of(folder: RuntimeFolder) -> IO[bytes]:
    """An agent without a log is better than no agent."""
    try:
        return folder.log.open("ab")
    except OSError:
        return open(os.devnull, "ab")


def log_tail(folder: RuntimeFolder) -> str:
    """The end of the agent's log, for an error message."""
    try:
        text = folder.log.read_text(errors="replace")
    except OSError:
        return "it left no log"
    return text[-LOG_TAIL_CHARACTERS:].strip() or "its log is empty"


def _environment() -> dict[str, str]:
    environment = {**process_environment(os.environ), "MALLOC_ARENA_MAX": "2"}
    parent = Path(__file__).resolve().parents[2]
    if parent.name not in ("site-packages", "dist-packages"):
        # The script may have a checkout on its own path: the agent must use the same one.
        known = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
        environment["PYTHONPATH"] = os.pathsep.join([str(parent), *known])
    return environment
