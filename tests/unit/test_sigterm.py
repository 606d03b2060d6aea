"""The handler of SIGTERM, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from instep.errors import SettingsError
from instep.worker.sigterm import notice_signals

BEGINNING = """
import os, signal, sys, threading, time
from instep.worker import sigterm

class Listener:
    def __init__(self, name="heard"):
        self.name = name
    def hear(self):
        print(self.name, flush=True)

def term():
    signal.raise_signal(signal.SIGTERM)

def later():
    "As if the first signal had come long ago."
    sigterm._heard_at -= sigterm.SAME_S
"""


def run(script: str) -> tuple[int, list[str]]:
    """Exit status and lines of a process."""
    done = subprocess.run([sys.executable, "-c", BEGINNING + script], capture_output=True, text=True, timeout=30)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.split("\n")[:-1]


def test_the_first_signal_gives_notice_and_the_second_ends_the_process() -> None:
    code, lines = run("a = Listener(); sigterm.listen(a.hear); term(); print('continues', flush=True); later(); term()")
    assert (code, lines) == (-signal.SIGTERM, ["heard", "continues"])


def test_signals_shortly_after_the_first_are_the_same_one() -> None:
    """A scheduler signals torchrun and its ranks, and torchrun its ranks once more."""
    code, lines = run("a = Listener(); sigterm.listen(a.hear); term(); term(); term(); print('continues')")
    assert (code, lines) == (0, ["heard", "heard", "heard", "continues"])


def test_a_handler_of_the_script_is_called_at_the_second_signal() -> None:
    code, lines = run("""
signal.signal(signal.SIGTERM, lambda number, frame: print('mine', number))
a = Listener(); sigterm.listen(a.hear)
term(); print('between'); later(); term()
""")
    assert (code, lines) == (0, ["heard", "between", "mine 15"])


def test_the_former_handler_is_restored_after_the_last_listener() -> None:
    code, lines = run("""
former = lambda number, frame: None
signal.signal(signal.SIGTERM, former)
a, b = Listener(), Listener('b')
sigterm.listen(a.hear); sigterm.listen(b.hear); term()
sigterm.ignore(a.hear); print(signal.getsignal(signal.SIGTERM) is former)
sigterm.ignore(b.hear); print(signal.getsignal(signal.SIGTERM) is former)
sigterm.listen(a.hear); term()
""")
    assert (code, lines) == (0, ["heard", "b", "False", "True", "heard"])


def test_a_handler_that_was_installed_later_is_kept() -> None:
    code, lines = run("""
a = Listener(); sigterm.listen(a.hear)
later = lambda number, frame: None
signal.signal(signal.SIGTERM, later)
sigterm.ignore(a.hear); print(signal.getsignal(signal.SIGTERM) is later)
""")
    assert (code, lines) == (0, ["True"])


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    code, lines = run("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
a = Listener(); sigterm.listen(a.hear); term(); print('nothing')
""")
    assert (code, lines) == (0, ["nothing"])


def test_outside_the_main_thread_nothing_is_changed() -> None:
    code, lines = run("""
a = Listener()
thread = threading.Thread(target=lambda: sigterm.listen(a.hear)); thread.start(); thread.join()
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
""")
    assert (code, lines) == (0, ["True"])


def test_listening_that_ends_in_another_thread_lets_the_next_signal_through() -> None:
    code, lines = run("""
a = Listener(); sigterm.listen(a.hear)
thread = threading.Thread(target=lambda: sigterm.ignore(a.hear)); thread.start(); thread.join()
print('now', flush=True); term()
""")
    assert (code, lines) == (-signal.SIGTERM, ["now"])


def test_a_removed_listener_holds_no_signal_back() -> None:
    code, lines = run("a = Listener(); sigterm.listen(a.hear); del a; print('now', flush=True); term()")
    assert (code, lines) == (-signal.SIGTERM, ["now"])


def test_an_unused_signal_is_passed_to_the_former_handler_after_the_last_listener() -> None:
    code, lines = run("""
a, b = Listener(), Listener('b')
sigterm.listen(a.hear); sigterm.listen(b.hear); term()
sigterm.ignore(a.hear); sigterm.hand_on(); print('continues', flush=True)
sigterm.ignore(b.hear); sigterm.hand_on()
""")
    assert (code, lines) == (-signal.SIGTERM, ["heard", "b", "continues"])


@pytest.mark.parametrize("thread", [False, True])
def test_a_forked_child_dies_from_sigterm_as_usual(thread: bool) -> None:
    code, lines = run(f"""
a = Listener(); sigterm.listen(a.hear)
def fork():
    child = os.fork()
    if child == 0:
        time.sleep(20); os._exit(0)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
if {thread}:
    import warnings; warnings.simplefilter('ignore')
    runner = threading.Thread(target=fork); runner.start(); runner.join()
else:
    fork()
term()
""")
    assert (code, lines) == (0, ["-15", "heard"])


def test_the_processes_of_multiprocessing_can_be_terminated() -> None:
    code, lines = run("""
import multiprocessing
a = Listener(); sigterm.listen(a.hear)
child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(20,), daemon=True)
child.start(); child.terminate(); child.join(); print(child.exitcode)
""")
    assert (code, lines) == (0, ["-15"])


def test_a_further_signal_gives_notice_however_often_and_its_former_handler_comes_back() -> None:
    code, lines = run("""
def mine(number, frame): print("mine")
signal.signal(signal.SIGUSR2, mine)
a = Listener(); sigterm.listen(a.hear, (signal.SIGUSR1, signal.SIGUSR2))
signal.raise_signal(signal.SIGUSR1); later() if sigterm._heard_at else None
signal.raise_signal(signal.SIGUSR1); signal.raise_signal(signal.SIGUSR2)
print(sigterm.heard)
sigterm.ignore(a.hear)
signal.raise_signal(signal.SIGUSR2)
print(signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
""")
    assert (code, lines) == (0, ["heard", "heard", "heard", "SIGUSR2", "mine", "True True"])


def test_a_handler_that_replaced_ours_is_noticed_and_ours_can_be_installed_again() -> None:
    code, lines = run("""
def theirs(number, frame): print("theirs")
a = Listener(); sigterm.listen(a.hear); print(sigterm.replaced())
signal.signal(signal.SIGTERM, theirs); print(sigterm.replaced())
sigterm.listen(a.hear); print(sigterm.replaced())
term(); later(); term()
""")
    assert (code, lines) == (0, ["None", "__main__.theirs", "None", "heard", "theirs"])


def test_a_forked_child_has_none_of_our_handlers() -> None:
    code, lines = run("""
a = Listener(); sigterm.listen(a.hear, (signal.SIGUSR1,))
if not (child := os.fork()):
    print(sigterm.replaced(), signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, flush=True)
    os._exit(0)
os.waitpid(child, 0)
""")
    assert (code, lines) == (0, ["None True"])


@pytest.mark.parametrize(
    ("environ", "signals"),
    [
        ({}, ()),
        ({"SLURM_JOB_ID": "7"}, (signal.SIGUSR1,)),
        ({"SLURM_JOB_ID": "7", "INSTEP_NOTICE_SIGNALS": "none"}, ()),
        ({"INSTEP_NOTICE_SIGNALS": "USR2"}, (signal.SIGUSR2,)),
        ({"INSTEP_NOTICE_SIGNALS": "sigusr1, TERM,xcpu"}, (signal.SIGUSR1, signal.SIGXCPU)),
    ],
)
def test_the_signals_that_give_notice_are_configured(environ: dict[str, str], signals: tuple[int, ...]) -> None:
    assert notice_signals(environ) == signals


@pytest.mark.parametrize("text", ["KILL", "USR1,,", "15", "SEGV"])
def test_a_signal_that_cannot_give_notice_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="cannot give notice; use some of USR1, USR2"):
        notice_signals({"INSTEP_NOTICE_SIGNALS": text})


def test_a_signal_that_the_script_handles_in_a_slurm_job_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: print)
    assert notice_signals({"SLURM_JOB_ID": "7"}) == ()
