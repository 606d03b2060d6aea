"""Instep: the live control plane of distributed PyTorch training, on etcd v3."""

from instep.errors import (
    AgentError,
    BarrierFull,
    BarrierTimeout,
    BindError,
    BudgetSpent,
    ChangeRejected,
    CheckpointError,
    Compacted,
    ConfigError,
    EtcdDenied,
    EtcdError,
    EtcdFull,
    EtcdUnavailable,
    Evicted,
    Fenced,
    GateTimeout,
    InstepError,
    JoinError,
    JoinRefused,
    JoinTimeout,
    LeaseLost,
    LockTimeout,
    NameTaken,
    ReceiptTimeout,
    RunNotFound,
    SettingsError,
    StepError,
)
from instep.worker import FreeConfig, Hyperparameters, Run, fixed, join

__version__ = "0.1.0"

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
    "ConfigError",
    "EtcdError",
    "EtcdDenied",
    "EtcdFull",
    "EtcdUnavailable",
    "Compacted",
    "LeaseLost",
    "Evicted",
    "GateTimeout",
    "JoinError",
    "JoinRefused",
    "JoinTimeout",
    "ReceiptTimeout",
    "RunNotFound",
    "SettingsError",
    "StepError",
    # errors of the recipes
    "Fenced",
    "LockTimeout",
    "BarrierTimeout",
    "BarrierFull",
    "NameTaken",
    "BudgetSpent",
    # version
    "__version__",
]
