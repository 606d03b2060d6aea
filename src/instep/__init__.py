"""Instep: the live control plane of distributed PyTorch training, on etcd v3."""

import logging

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
from instep.text import OneLine
from instep.version import VERSION
from instep.worker import FreeConfig, Hyperparameters, Run, fixed, join

__version__ = VERSION

logging.getLogger("instep").addFilter(OneLine())  # here: every process of ours imports this package first

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
