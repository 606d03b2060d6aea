"""What Instep does for PyTorch: the only package that imports torch (2.6 or later)."""

from ._checkpoint.checkpointer import Checkpointer
from ._optim.binding import Binding, BindingStatistics, bind
from ._optim.request import SteeredRun

__all__ = [
    # optimizers
    "bind",
    "Binding",
    "BindingStatistics",
    "SteeredRun",
    # checkpoints
    "Checkpointer",
]
