"""What a training loop calls. The standard library and pydantic only: no grpc, no torch, no thread."""

from instep.worker.hyper import FreeConfig, Hyperparameters, fixed
from instep.worker.join import join
from instep.worker.run import Run

__all__ = ["FreeConfig", "Hyperparameters", "Run", "fixed", "join"]
