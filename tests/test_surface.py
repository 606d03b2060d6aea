"""What people import and call, pinned: a name that goes or a parameter that changes fails here first."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest

import instep
import instep.etcd
import instep.testing
from instep import errors

PACKAGE = {
    *("join", "Run", "Hyperparameters", "FreeConfig", "fixed"),
    *("InstepError", "AgentError", "BindError", "ChangeRejected", "CheckpointError", "ConfigError"),
    *("CommandRefused", "NotRunning"),
    *("EtcdError", "EtcdDenied", "EtcdFull", "EtcdUnavailable", "Compacted", "HistoryChanged", "LeaseLost"),
    *("Evicted", "GateTimeout", "JoinError", "JoinRefused", "JoinTimeout"),
    *("Preempted", "ReceiptTimeout", "RunClosed", "RunNotFound", "SettingsError", "StepError"),
    *("Fenced", "BarrierTimeout", "NameTaken"),
    "__version__",
}
TORCH = {"bind", "Binding", "BindingStatistics", "SteeredRun", "Checkpointer"}
TESTING = {
    *("EtcdServer", "EtcdCluster", "EtcdMember", "MemberStatus", "Certificates"),
    *("Proxy", "Link", "LinkStatistics"),
    *("EtcdBinary", "etcd_versions", "find_etcd"),
    *("namespaces_refusal", "slow_disk_refusal"),
}
ETCD = {
    *("Client", "Credentials", "Tls"),
    *("KeyValue", "Listing"),
    *("Compare", "Op", "DeleteResult", "OpResult", "PutResult", "TxnResult"),
    *("Watch", "WatchBatch", "Event"),
    *("Lease", "LeaseKeeper", "LeaseState", "LeaseTiming"),
    *("Statistics", "Status", "StoreHistory"),
}
CHECKERS = {
    *("History", "Call", "Operation", "Reply", "Value", "may_have_happened", "load_records", "save_records"),
    *("check_linearizability", "check_revisions", "Hold", "Accepted", "check_exclusion", "check_fencing"),
    *("WatchEvent", "WatchStarted", "WatchReceived", "Reference", "received", "check_watch"),
    *("ConfigRun", "Commit", "Desired", "config_digest"),
    *("check_steps", "check_commits", "check_changes", "Answer", "Verdict", "Violation", "Report"),
}
COORDINATION = {
    *("Session", "SessionStatistics", "LinkState", "Fence", "Election", "ElectionStatistics", "Incumbent"),
    *("Group", "GroupMember", "GroupStatistics"),
}
RUN = {
    *("barrier", "boundary", "close", "leads", "on_change", "report", "steps", "view"),
    *("action", "checkpoint", "checkpoint_requested", "on_restore", "paused", "stopped", "handle_signals"),
}
RUN_ATTRIBUTES = {"checkpoints", "config", "name", "rank", "world_size"}

NOT_IN_A_TRAINER = (
    *("grpc", "google.protobuf", "torch", "numpy", "typer", "rich"),
    *("asyncio", "subprocess", "multiprocessing", "ssl", "concurrent.futures"),
    *("instep.etcd", "instep.recipes", "instep.agent", "instep.control", "instep.testing", "instep.torch"),
)

A_TRAINER_LOADS = """
import os, sys, threading
import instep

class Hyper(instep.Hyperparameters):
    lr: float = 3e-4

print(*[name for name in sys.argv[1:] if name in sys.modules])
print(threading.active_count(), len(os.listdir("/proc/self/task")))
"""

Parameters = dict[str, tuple[inspect._ParameterKind, Any]]
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
BY_NAME = inspect.Parameter.KEYWORD_ONLY
NONE_GIVEN = inspect.Parameter.empty


def parameters(function: Any) -> Parameters:
    return {name: (item.kind, item.default) for name, item in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("instep", PACKAGE),
        ("instep.testing", TESTING),
        ("instep.testing.checkers", CHECKERS),
        ("instep.etcd", ETCD),
        ("instep.recipes", COORDINATION),
    ],
)
def test_the_public_names_are_these(module: str, names: set[str]) -> None:
    check_names(module, names)


@pytest.mark.torch
def test_the_public_names_for_torch_are_these() -> None:
    pytest.importorskip("torch")
    check_names("instep.torch", TORCH)


PUBLIC_MODULES = ("instep", "instep.testing", "instep.testing.checkers", "instep.etcd", "instep.recipes")


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_name_has_a_docstring(module: str) -> None:
    check_docstrings(module)


@pytest.mark.torch
def test_every_public_name_for_torch_has_a_docstring() -> None:
    pytest.importorskip("torch")
    check_docstrings("instep.torch")


def check_docstrings(module: str) -> None:
    """Of functions and classes, and of the public methods and properties that a class itself defines."""
    package = importlib.import_module(module)
    public = {name: getattr(package, name) for name in package.__all__}
    things = {name: thing for name, thing in public.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    members = {
        f"{name}.{member}": value
        for name, thing in things.items()
        if inspect.isclass(thing)
        for member, value in vars(thing).items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
    }
    assert [name for name, thing in {**things, **members}.items() if not thing.__doc__] == []


def check_names(module: str, names: set[str]) -> None:
    package = importlib.import_module(module)
    assert set(package.__all__) == names
    assert len(package.__all__) == len(names)
    for name in names:
        assert getattr(package, name) is not None


def test_every_error_is_public_and_is_an_instep_error() -> None:
    defined: dict[str, Any] = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }
    assert defined.keys() <= PACKAGE
    assert all(issubclass(kind, instep.InstepError) for kind in defined.values())
    assert all(1 <= kind.exit_code < 126 for kind in defined.values())


def test_the_public_methods_of_a_run_are_these() -> None:
    assert {name for name in dir(instep.Run) if not name.startswith("_")} - RUN_ATTRIBUTES == RUN


def test_the_parameters_of_join_are_these() -> None:
    assert parameters(instep.join) == {
        "name": (POSITIONAL, NONE_GIVEN),
        "schema": (POSITIONAL, None),
        "etcd": (BY_NAME, None),
        "namespace": (BY_NAME, None),
        "rank": (BY_NAME, None),
        "world_size": (BY_NAME, None),
        "timeout_s": (BY_NAME, 300.0),
        "etcd_patience_s": (BY_NAME, 300.0),
        "replay": (BY_NAME, None),
        "max_restarts": (BY_NAME, None),
        "take_over": (BY_NAME, False),
        "protect_loader_workers": (BY_NAME, True),
        "prefer": (BY_NAME, "etcd"),
    }


@pytest.mark.torch
def test_the_parameters_of_bind_are_these() -> None:
    pytest.importorskip("torch")
    bind = importlib.import_module("instep.torch").bind
    assert parameters(bind) == {
        "run": (POSITIONAL, NONE_GIVEN),
        "optimizer": (POSITIONAL, NONE_GIVEN),
        "scheduler": (BY_NAME, None),
        "mode": (BY_NAME, "scale"),
        "ratio": (BY_NAME, None),
        "names": (inspect.Parameter.VAR_KEYWORD, NONE_GIVEN),
    }


def test_a_training_script_loads_no_client_no_thread_and_no_event_loop() -> None:
    done = subprocess.run(
        [sys.executable, "-c", A_TRAINER_LOADS, *NOT_IN_A_TRAINER],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded, threads = done.stdout.splitlines()
    assert loaded == ""
    assert threads == "1 1"


def test_importing_the_package_loads_almost_nothing() -> None:
    """The agent and the command line import it first: what training scripts use loads when it is used."""
    program = "import sys, instep; print('pydantic' in sys.modules, instep.join.__name__, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "join", "True"]
