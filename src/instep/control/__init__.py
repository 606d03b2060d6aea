"""What an operator can do to a run, once: the command line, the terminal and web views and the tuner call these.

Async functions over an open etcd client. They return frozen facts with `.to_json()`, raise errors of
`instep.errors`, and print nothing.

    async with connect(resolve()) as client:
        keys = Keys("/training", "gpt-a")
        written = await set_values(client, keys, {"lr": "1e-4"}, reason="loss spike")
        receipt = await wait(client, keys, written, timeout_s=60)
        assert receipt.holds
"""

from __future__ import annotations

from instep.control._actions import Action, Actions, actions
from instep.control._assignments import parse_assignments
from instep.control._attempts import AttemptsFacts, FailureFacts, WasReset, reset
from instep.control._change import Written, default_author, set_values
from instep.control._change_wish import ChangeReceipt
from instep.control._checkpoints import Checkpoint, Checkpoints, checkpoints
from instep.control._command import Sent, send
from instep.control._command_wish import CommandReceipt
from instep.control._connect import connect
from instep.control._delete import Deletable, Deleted, deletable, delete
from instep.control._diff import Diff, Difference, diff, parse_moment, view_of
from instep.control._discover import run_names
from instep.control._drift import drift_sentence
from instep.control._epochs import EpochFacts
from instep.control._facts import Facts, ValueChange
from instep.control._follow import Progress, follow, wait
from instep.control._get import Value, Values, get
from instep.control._history import Attempt, Entry, History, history
from instep.control._leaders import Leading
from instep.control._past import schedule
from instep.control._registry import Adopted, Forgotten, adopt, forget
from instep.control._rollback import RolledBack, rollback
from instep.control._runs import Runs, RunSummary, runs
from instep.control._stand import Outcome
from instep.control._status import (
    LeaderFacts,
    NodeWaiting,
    PlanFacts,
    RankFacts,
    RanksAtStep,
    Status,
    StepFacts,
    ViewFacts,
    status,
    watch_status,
)
from instep.control._text import format_bytes, format_change, format_changes, format_value
from instep.control._torchrun import NodeAsking, NodeFacts, RendezvousFacts, RestartsFacts
from instep.control._under_way import PausedFacts, SavingFacts, StoppingFacts, WaitingFacts
from instep.control._unset import Unset, unset_values
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
    "view_of",
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
    # facts
    "Facts",
    "Unset",
    "Runs",
    "RunSummary",
    "Status",
    "ViewFacts",
    "LeaderFacts",
    "RankFacts",
    "RanksAtStep",
    "StepFacts",
    "PlanFacts",
    "NodeWaiting",
    "PausedFacts",
    "StoppingFacts",
    "SavingFacts",
    "WaitingFacts",
    "AttemptsFacts",
    "FailureFacts",
    "WasReset",
    "Deletable",
    "Deleted",
    "RendezvousFacts",
    "NodeFacts",
    "NodeAsking",
    "RestartsFacts",
    "Value",
    "Values",
    "ValueChange",
    "Diff",
    "Difference",
    "Written",
    "RolledBack",
    "Progress",
    "Sent",
    "ChangeReceipt",
    "CommandReceipt",
    "Checkpoint",
    "Checkpoints",
    "Adopted",
    "Forgotten",
    "Action",
    "Actions",
    "Outcome",
    "History",
    "Entry",
    "Attempt",
    "Leading",
    "EpochFacts",
    # words
    "format_value",
    "format_bytes",
    "format_change",
    "format_changes",
    "drift_sentence",
    "one_line",
]
