"""Instep: the live control plane of distributed PyTorch training, on etcd v3."""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING

from instep.errors import (
    AgentError,
    BarrierTimeout,
    BindError,
    ChangeRejected,
    CheckpointError,
    CommandRefused,
    Compacted,
    ConfigError,
    EtcdDenied,
    EtcdError,
    EtcdFull,
    EtcdUnavailable,
    Evicted,
    Fenced,
    GateTimeout,
    HistoryChanged,
    InstepError,
    JoinError,
    JoinRefused,
    JoinTimeout,
    LeaseLost,
    NameTaken,
    NotRunning,
    Preempted,
    ReceiptTimeout,
    RunClosed,
    RunNotFound,
    SettingsError,
    StepError,
)
from instep.names import PROTECTED_VARIABLE
from instep.text import OneLine
from instep.version import VERSION

if TYPE_CHECKING:
    from instep.worker.hyper import FreeConfig, Hyperparameters, fixed
    from instep.worker.join import join
    from instep.worker.run import Run

__version__ = VERSION

logging.getLogger("instep").addFilter(OneLine())  # here, because every process of Instep imports this package first

__all__ = [
    # joining a run
    "join",
    "Run",
    "Hyperparameters",
    "FreeConfig",
    "fixed",
    # errors: all are an InstepError
    "InstepError",
    "AgentError",
    "BindError",
    "ChangeRejected",
    "CheckpointError",
    "CommandRefused",
    "ConfigError",
    "EtcdError",
    "EtcdDenied",
    "EtcdFull",
    "EtcdUnavailable",
    "Compacted",
    "HistoryChanged",
    "LeaseLost",
    "Evicted",
    "GateTimeout",
    "JoinError",
    "JoinRefused",
    "JoinTimeout",
    "Preempted",
    "ReceiptTimeout",
    "RunClosed",
    "RunNotFound",
    "NotRunning",
    "SettingsError",
    "StepError",
    # errors of the recipes
    "Fenced",
    "BarrierTimeout",
    "NameTaken",
    # version
    "__version__",
]

if PROTECTED_VARIABLE in os.environ:
    importlib.import_module("instep.worker.children")  # this may be a DataLoader worker, which is set up here


def __getattr__(name: str) -> object:
    """Loads the names for training scripts, and pydantic, on first use: the agent and the commands do not need them."""
    if name in ("join", "Run", "Hyperparameters", "FreeConfig", "fixed"):
        return getattr(importlib.import_module("instep.worker"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
