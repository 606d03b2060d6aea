"""Ctrl-C ends a command with 130 and without a traceback, at whatever moment it comes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command import environment

INTERRUPTED_AT_IMPORT = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv = ["instep", *{arguments!r}]
from instep_command import main
main()
"""


@pytest.mark.parametrize("module", ["instep", "typer", "instep.control"])
def test_ctrl_c_while_modules_are_loaded_leaves_no_traceback(module: str) -> None:
    env = environment({"INSTEP_ETCD": "http://127.0.0.1:1"})
    code = INTERRUPTED_AT_IMPORT.format(module=module, arguments=["status", "gpt-a"])
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


def test_an_ignored_interrupt_stays_ignored() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED_AT_IMPORT.format(
        module="typer", arguments=["--version"]
    )
    env = environment({"INSTEP_ETCD": "http://127.0.0.1:1"})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0
