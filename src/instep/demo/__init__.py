"""`instep demo`: shows every feature on one machine with real processes, and checks the results.

Starts its own etcd, trains examples/train_char_transformer.py with torchrun and DDP, changes hyperparameters as an
operator would, kills the rank that saves a checkpoint, pauses, resumes and stops the run, and compares what every rank
did. Then runs the same training without Instep, whose ranks drift apart. Linux only; needs torch and an etcd program
(`instep[demo]`).
"""

from __future__ import annotations

__all__ = ["main"]

DEFAULT_STEPS = 30
DEFAULT_RANKS = 4


def main(steps: int = DEFAULT_STEPS, ranks: int = DEFAULT_RANKS, *, keep: bool = False, as_json: bool = False) -> int:
    """Runs the demo and returns its exit code: 0 if all of its claims held, 1 if one did not.

    The ranks train at least `steps` steps between two actions of the operator. With `keep`, training continues after
    the changes, for the user to steer, until it is interrupted (exit code 0). An earlier interrupt gives 130 (Ctrl-C)
    or 143 (SIGTERM). However it ends, it leaves no process behind. Call it in the main thread. Raises SettingsError if
    torch or etcd is missing, and InstepError if the training itself fails.
    """
    from instep.demo._scenario import DemoOptions, run_demo

    return run_demo(DemoOptions(steps=steps, ranks=ranks, keep=keep), as_json=as_json)
