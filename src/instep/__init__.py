"""Instep: the live control plane of distributed PyTorch training, on etcd v3."""

from instep.errors import (
    AgentError,
    BindError,
    ChangeRejected,
    Compacted,
    ConfigError,
    EtcdDenied,
    EtcdError,
    EtcdUnavailable,
    Evicted,
    GateTimeout,
    InstepError,
    JoinError,
    JoinRefused,
    JoinTimeout,
    LeaseLost,
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
    "ConfigError",
    "EtcdError",
    "EtcdDenied",
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
    # version
    "__version__",
]
