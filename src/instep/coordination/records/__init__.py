"""What the keys of a run hold, one module for each noun."""

from instep.coordination.records.agreement import (
    Ack,
    Agreed,
    Change,
    Command,
    CommandKind,
    Decision,
    Declined,
    Directive,
    Held,
    Plan,
    PlanKind,
    Receipt,
    Rejected,
)
from instep.coordination.records.attempts import Attempts, Cleared, Failure
from instep.coordination.records.base import MAX_RANKS, Record, WorkerId, format_ranks, parse_ranks
from instep.coordination.records.checkpoint import FailedSave, FailedSaves, Manifest, Pointer, Resume, Saving, Verified
from instep.coordination.records.leadership import CAME_FIRST, Candidate, Epoch, Leader, Resigned, Term
from instep.coordination.records.membership import Elastic, Forming, Head, Left, Member, NodeClaim, NodeMembers, Refused
from instep.coordination.records.reports import Arrivals, Metrics, Release, Waiting
from instep.coordination.records.view import Entered, FirstStep, Origin, Snapshot, StartChange, StartOfView, View

__all__ = [
    # base
    "MAX_RANKS",
    "WorkerId",
    "Record",
    "format_ranks",
    "parse_ranks",
    # membership
    "Elastic",
    "Head",
    "Member",
    "NodeClaim",
    "NodeMembers",
    "Left",
    "Refused",
    "Forming",
    # attempts
    "Failure",
    "Cleared",
    "Attempts",
    # agreement
    "PlanKind",
    "CommandKind",
    "Directive",
    "Command",
    "Declined",
    "Change",
    "Plan",
    "Decision",
    "Agreed",
    "Held",
    "Ack",
    "Receipt",
    "Rejected",
    # view
    "Snapshot",
    "View",
    "StartChange",
    "Entered",
    "StartOfView",
    "Origin",
    "FirstStep",
    # checkpoint
    "Manifest",
    "Pointer",
    "Saving",
    "FailedSave",
    "FailedSaves",
    "Resume",
    "Verified",
    # leadership
    "Epoch",
    "Leader",
    "Candidate",
    "CAME_FIRST",
    "Term",
    "Resigned",
    # reports
    "Waiting",
    "Arrivals",
    "Release",
    "Metrics",
]
