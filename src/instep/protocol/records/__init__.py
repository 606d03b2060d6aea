"""What the keys of a run hold, one module for each noun."""

from instep.protocol.records.agreement import (
    Ack,
    Change,
    Command,
    CommandName,
    Decision,
    Declined,
    Held,
    Receipt,
    Rejected,
)
from instep.protocol.records.attempts import Attempts, Cleared, RankFailure
from instep.protocol.records.base import MAX_RANKS, Record, WorkerId, format_ranks, parse_ranks
from instep.protocol.records.checkpoint import FailedSave, FailedSaves, Resume, Verified
from instep.protocol.records.leadership import CAME_FIRST, Candidate, Epoch, Leader, Resigned, Term
from instep.protocol.records.membership import Forming, Head, Left, Member, NodeClaim, NodeMembers, Refused
from instep.protocol.records.reports import Arrivals, Metrics, Release, Waiting
from instep.protocol.records.view import Entered, FirstStep, StartChange, StartOfView, View
from instep.wire.documents import (
    Agreed,
    Directive,
    Elastic,
    Manifest,
    Origin,
    Plan,
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
    "RankFailure",
    "Cleared",
    "Attempts",
    # agreement
    "CommandName",
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
