"""What the keys of a run hold, one module for each noun."""

from instep.coordination.records.agreement import (
    Ack,
    Change,
    Command,
    CommandKind,
    Decision,
    Declined,
    Held,
    Receipt,
    Rejected,
)
from instep.coordination.records.attempts import Attempts, Cleared, Failure
from instep.coordination.records.base import MAX_RANKS, Record, WorkerId, format_ranks, parse_ranks
from instep.coordination.records.checkpoint import FailedSave, FailedSaves, Resume, Verified
from instep.coordination.records.leadership import CAME_FIRST, Candidate, Epoch, Leader, Resigned, Term
from instep.coordination.records.membership import Forming, Head, Left, Member, NodeClaim, NodeMembers, Refused
from instep.coordination.records.reports import Arrivals, Metrics, Release, Waiting
from instep.coordination.records.view import Entered, FirstStep, StartChange, StartOfView, View
from instep.wire.documents import (
    Agreed,
    Directive,
    Elastic,
    Manifest,
    Origin,
    Plan,
    PlanKind,
    Pointer,
    Saving,
    Snapshot,
)

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
