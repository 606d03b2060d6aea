"""`instep demo`: the whole story on one machine, told by real processes and proved at the end.

It starts an etcd of its own, trains examples/train_char_transformer.py with torchrun and DDP, changes
hyperparameters as an operator would, kills the rank that saves a checkpoint, pauses, resumes and stops the run, and
compares what every rank did. Beside it runs the same training
without Instep, whose ranks drift apart. Linux only; needs torch, and an etcd program (`instep[demo]`).
"""

from __future__ import annotations

__all__ = ["main"]

DEFAULT_STEPS = 30
DEFAULT_RANKS = 4


def main(steps: int = DEFAULT_STEPS, ranks: int = DEFAULT_RANKS, *, keep: bool = False, as_json: bool = False) -> int:
    """Run the demo and return its exit code: 0 when everything it claims held, 1 when something did not.

    At least `steps` steps lie between two acts.

    With `keep` the training goes on after the changes, for the user to steer, until it is interrupted, which
    is then its good end (0); 130 and 143 tell of an interrupt (Ctrl-C, SIGTERM) before that. Whatever ends
    it, no process of it is left. To be called in the main thread. Raises SettingsError when torch or etcd is
    missing, and InstepError when the training itself fails.
    """
    from instep.demo._perform import perform
    from instep.demo._play import Options

    return perform(Options(steps=steps, ranks=ranks, keep=keep), as_json=as_json)
