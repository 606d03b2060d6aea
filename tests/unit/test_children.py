"""What SIGTERM does to a DataLoader's workers, with a stand-in for the library: only the module's name matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import instep

LOADER = """
import os, signal, subprocess, threading, time

def work(how, conn):
    if how == "program":
        program = subprocess.Popen(["sleep", "60"])
        program.terminate()
        conn.send(program.wait(10))
    else:
        blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        conn.send([blocked, [thread.name for thread in threading.enumerate()]])
    time.sleep(600)
"""

BEGINNING = """
import instep  # as a script does, before torch
import json, multiprocessing, os, signal, subprocess, sys, time
from multiprocessing import spawn
from torchdata.standin import work

def other(how, conn):
    work(how, conn)

def start(context, how="", target=work, daemon=True):
    context = multiprocessing.get_context(context)
    here, there = context.Pipe()
    child = context.Process(target=target, args=(how, there), daemon=daemon)
    child.start()
    return child, here.recv()

def kill_group():
    "As another process does; the trainer ignores it here."
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    subprocess.run(["setsid", "kill", "-TERM", "--", f"-{os.getpgrp()}"])

def preload():
    "The fork server loads the script, as newer Pythons let it."
    former = spawn.get_preparation_data
    def patched(name):
        data = former(name)
        return {**data, "main_path": data.get("init_main_from_path")}
    spawn.get_preparation_data = patched
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "torchdata"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "standin.py").write_text(LOADER)
    return tmp_path


def execute(path: Path) -> subprocess.CompletedProcess[str]:
    source = Path(instep.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": f"{path.parent}{os.pathsep}{source}"},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )


def run(folder: Path, script: str, *, unprotected: bool = False) -> list[object]:
    """The output of the script, which runs in its own process group."""
    path = folder / "script.py"
    protect = "" if unprotected else "from instep.worker.children import protect; protect()"
    main = f"{protect}\n{script}"
    path.write_text(BEGINNING + "\nif __name__ == '__main__':\n" + "".join(f"    {s}\n" for s in main.splitlines()))
    done = execute(path)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_a_loader_worker_survives_the_group_signal_and_obeys_its_trainer(folder: Path, context: str) -> None:
    said = run(
        folder,
        f"""
preload()
child, guarded = start({context!r})
kill_group()
child.join(0.5)
print(json.dumps([guarded, child.is_alive()]))
child.terminate()
child.join()
print(child.exitcode)
""",
    )
    assert said == [[[True, ["MainThread", "instep-sigterm"]], True], 0]


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_other_children_are_left_alone(folder: Path, context: str) -> None:
    said = run(
        folder,
        f"""
preload()
child, guarded = start({context!r}, target=other)
print(json.dumps(guarded))
child.terminate()
child.join()
print(child.exitcode)
child, guarded = start({context!r}, daemon=False)
print(json.dumps(guarded))
child.terminate()
child.join()
print(child.exitcode)
""",
    )
    assert said == [[False, ["MainThread"]], -15] * 2


def test_a_child_of_the_fork_server_that_is_terminated_at_once_ends(folder: Path) -> None:
    said = run(
        folder,
        """
preload()
context = multiprocessing.get_context("forkserver")
for _ in range(10):
    child = context.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    print(child.exitcode)
""",
    )
    assert said == [-15] * 10


def test_a_process_that_a_worker_starts_can_be_terminated(folder: Path) -> None:
    said = run(folder, "child, code = start('fork', 'program'); print(code); child.terminate()")
    assert said == [-15]


def test_a_worker_that_ignored_the_signal_ends_with_its_trainer(folder: Path) -> None:
    """Its trainer is killed and cannot end it."""
    path = folder / "trainer.py"
    path.write_text(
        BEGINNING
        + """
from instep.worker.children import protect; protect()
child, guarded = start("fork")
subprocess.run(["kill", "-TERM", str(child.pid)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    # The worker holds the pipe open: it is read to its end, in time, when the worker has gone.
    assert execute(path).returncode == -signal.SIGKILL


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_without_a_join_a_loaders_worker_is_left_alone(folder: Path, context: str) -> None:
    said = run(
        folder,
        f"""
preload()
child, guarded = start({context!r})
print(json.dumps(guarded))
child.terminate()
child.join()
print(child.exitcode)
""",
        unprotected=True,
    )
    assert said == [[False, ["MainThread"]], -15]


def test_the_children_of_another_process_that_inherits_the_environment_are_left_alone(folder: Path) -> None:
    """A script that a training process starts, with its own loaders, has not joined a run."""
    said = run(
        folder,
        """
os.environ["INSTEP_PROTECTS_WORKERS_OF"] = str(os.getppid())
for context in ("fork", "spawn"):
    child, guarded = start(context)
    print(json.dumps(guarded))
    child.terminate()
    child.join()
    print(child.exitcode)
""",
        unprotected=True,
    )
    assert said == [[False, ["MainThread"]], -15] * 2


def test_importing_instep_changes_nothing_of_multiprocessing_subprocess_and_signals(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import multiprocessing.context, multiprocessing.popen_fork, multiprocessing.popen_spawn_posix, multiprocessing.spawn
import multiprocessing.forkserver, os, signal, subprocess
from multiprocessing import process, util

def state():
    owners = (multiprocessing.context.SpawnProcess, multiprocessing.context.ForkProcess, multiprocessing.spawn,
              multiprocessing.forkserver, multiprocessing.popen_fork.Popen, multiprocessing.popen_spawn_posix.Popen,
              process.BaseProcess, subprocess, subprocess.Popen, os, signal)
    return ([dict(vars(owner)) for owner in owners], dict(util._afterfork_registry), dict(os.environ),
            [signal.getsignal(number) for number in signal.valid_signals()],
            signal.pthread_sigmask(signal.SIG_BLOCK, ()))

hooks = []
os.register_at_fork = lambda **given: hooks.append(given)
before = state()
import instep, instep.worker.children
after = state()
assert before == after
assert "instep.worker.children" not in {getattr(call, "__module__", "") for hook in hooks for call in hook.values()}
"""
    )
    done = execute(script)
    assert done.returncode == 0, done.stderr
