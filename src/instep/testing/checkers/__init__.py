"""Checkers of recorded histories: whether what clients, watches, leaders and ranks observed keeps the promises.

    from instep.testing.checkers import History, Operation, Reply, check_linearizability

    history = History()
    async with history.call("client-1", "put", key, value) as op:
        op.result = Reply.wrote(await client.put(key, value))
    verdict = check_linearizability(history.select(Operation))
    assert verdict.passed, str(verdict)

Pure: no etcd, and no files except histories. Every verdict is yes, no or undecided.
"""

from __future__ import annotations

from instep.testing.checkers.agreement import Commit, ConfigRun, check_commits, check_steps, config_digest
from instep.testing.checkers.changes import Desired, check_changes
from instep.testing.checkers.exclusion import Accepted, Hold, check_exclusion, check_fencing
from instep.testing.checkers.history import Call, History, may_have_happened
from instep.testing.checkers.jsonl import load_records, save_records
from instep.testing.checkers.linearizability import check_linearizability
from instep.testing.checkers.operation import Operation, Reply, Value
from instep.testing.checkers.reference import Reference
from instep.testing.checkers.revisions import check_revisions
from instep.testing.checkers.verdict import Answer, Report, Verdict, Violation
from instep.testing.checkers.watch import check_watch
from instep.testing.checkers.watched import WatchEvent, WatchReceived, WatchStarted, received

__all__ = [
    # histories
    "History",
    "Call",
    "Operation",
    "Reply",
    "Value",
    "may_have_happened",
    "load_records",
    "save_records",
    # registers
    "check_linearizability",
    "check_revisions",
    # locks and elections
    "Hold",
    "Accepted",
    "check_exclusion",
    "check_fencing",
    # watches
    "WatchEvent",
    "WatchStarted",
    "WatchReceived",
    "Reference",
    "received",
    "check_watch",
    # agreement
    "ConfigRun",
    "Commit",
    "Desired",
    "config_digest",
    "check_steps",
    "check_commits",
    "check_changes",
    # verdicts
    "Answer",
    "Verdict",
    "Violation",
    "Report",
]
