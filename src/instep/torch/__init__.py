"""What Instep does for PyTorch: the only package that imports torch (2.6 or later)."""

from ._binding import Binding, BindingStatistics, bind
from ._checkpointer import Checkpointer
from ._run import SteeredRun

__all__ = [
    # optimizers
    "bind",
    "Binding",
    "BindingStatistics",
    "SteeredRun",
    # checkpoints
    "Checkpointer",
]
