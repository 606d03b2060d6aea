"""What an operator can do to a run, once: the command line, the terminal and web views and the tuner call these.

Async functions over an open etcd client. They return frozen reports with `.to_json()`, raise errors of
`instep.errors`, and print nothing.

    async with connect(resolve()) as client:
        keys = Keys("/training", "gpt-a")
        written = await set_values(client, keys, {"lr": "1e-4"}, reason="loss spike")
        receipt = await wait(client, keys, written, timeout_s=60)
        assert receipt.holds
"""

from __future__ import annotations

from instep.control._change import (
    AttemptsReport,
    Unset,
    WasReset,
    Written,
    default_author,
    reset,
    set_values,
    unset_values,
)
from instep.control._checkpoints import (
    Adopted,
    CheckpointReport,
    CheckpointsReport,
    Forgotten,
    adopt,
    checkpoints,
    forget,
)
from instep.control._commands import ActionReport, ActionsReport, Sent, actions, send
from instep.control._follow import follow, wait
from instep.control._history import Attempt, EpochReport, HistoryEntry, HistoryReport, TermReport, history
from instep.control._past import Diff, Difference, RolledBack, diff, parse_moment, rollback, schedule
from instep.control._progress import Outcome, Progress, drift_sentence
from instep.control._read import connect, run_names
from instep.control._report import JsonReport, ValueChange, format_bytes, format_change, format_changes, format_value
from instep.control._requests import ChangeReceipt, CommandReceipt
from instep.control._runs import (
    Deletable,
    Deleted,
    PausedReport,
    Runs,
    RunSummary,
    SavingReport,
    StoppingReport,
    WaitingReport,
    deletable,
    delete,
    runs,
)
from instep.control._status import (
    LeaderReport,
    NodeWaiting,
    PlanReport,
    RankReport,
    RanksAtStep,
    RunStatus,
    StepReport,
    ViewReport,
    status,
    watch_status,
)
from instep.control._torchrun import NodeAsking, NodeReport, RendezvousReport, RestartsReport
from instep.control._values import ValuesReport, ValueStatus, get, parse_assignments
from instep.protocol.keys import Keys
from instep.text import one_line

__all__ = [
    # reaching a run
    "Keys",
    "connect",
    # looking
    "runs",
    "run_names",
    "status",
    "watch_status",
    "get",
    "history",
    "diff",
    "parse_moment",
    "schedule",
    "checkpoints",
    "actions",
    # changing
    "parse_assignments",
    "default_author",
    "set_values",
    "unset_values",
    "rollback",
    "send",
    "reset",
    "deletable",
    "delete",
    "adopt",
    "forget",
    "follow",
    "wait",
    # reports
    "JsonReport",
    "Unset",
    "Runs",
    "RunSummary",
    "RunStatus",
    "ViewReport",
    "LeaderReport",
    "RankReport",
    "RanksAtStep",
    "StepReport",
    "PlanReport",
    "NodeWaiting",
    "PausedReport",
    "StoppingReport",
    "SavingReport",
    "WaitingReport",
    "AttemptsReport",
    "WasReset",
    "Deletable",
    "Deleted",
    "RendezvousReport",
    "NodeReport",
    "NodeAsking",
    "RestartsReport",
    "ValueStatus",
    "ValuesReport",
    "ValueChange",
    "Diff",
    "Difference",
    "Written",
    "RolledBack",
    "Progress",
    "Sent",
    "ChangeReceipt",
    "CommandReceipt",
    "CheckpointReport",
    "CheckpointsReport",
    "Adopted",
    "Forgotten",
    "ActionReport",
    "ActionsReport",
    "Outcome",
    "HistoryReport",
    "HistoryEntry",
    "Attempt",
    "TermReport",
    "EpochReport",
    # words
    "format_value",
    "format_bytes",
    "format_change",
    "format_changes",
    "drift_sentence",
    "one_line",
]
