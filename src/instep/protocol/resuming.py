"""From which checkpoint the ranks of a fresh view resume: the newest that all of them found good. Pure.

One checkpoint is offered to all ranks at a time. If a rank finds a fault, the checkpoint from which that one resumed is
offered next: a run never resumes from a checkpoint that it has left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from instep.protocol import membership
from instep.protocol.records import Left, Manifest, Pointer, Resume, Verified, View

LINEAGE = 20
"""How many ancestors a manifest names."""
MAX_REASONS = 20
GONE = "its record is no longer in etcd"


@dataclass(frozen=True, slots=True)
class ResumeOffer:
    """The checkpoint that a view starts from. `vote`: its ranks have to agree on it first."""

    checkpoint: str | None
    vote: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteSituation:
    """The input of the leader's decision."""

    view: View
    resume: Resume | None
    verified: Mapping[str, Verified]
    left: Mapping[str, Left]
    manifests: Mapping[str, Manifest]


def offer(
    view: View | None, fresh: bool, pointer: Pointer | None, resume: Resume | None, *, resume_is_newer: bool
) -> ResumeOffer:
    """The checkpoint that the view after `view` starts from. `resume_is_newer`: than the newest checkpoint."""
    newest = pointer.id if pointer is not None else None
    if fresh or view is None:
        return ResumeOffer(newest, vote=newest is not None)
    if resume is not None and resume.final:
        return ResumeOffer(resume.id if resume_is_newer else newest, vote=False)
    return ResumeOffer(newest, vote=view.start.vote and view.start.checkpoint is not None)


def asked(view: View, resume: Resume | None) -> Resume:
    """The checkpoint that is offered to the ranks of the view now, or from which they resume."""
    start = view.start
    if start.vote and resume is not None and resume.view == view.number:
        return resume
    return Resume(view=view.number, id=start.checkpoint, final=not start.vote or start.checkpoint is None)


def is_open(view: View | None, resume: Resume | None) -> bool:
    """Whether the ranks have yet to agree on a checkpoint."""
    return view is not None and not asked(view, resume).final


def next_resume(situation: VoteSituation) -> Resume | None:
    """The next offer or the result; None while nothing has changed."""
    now = asked(situation.view, situation.resume)
    if now.final or now.id is None:
        return None
    answers = [answer for answer in situation.verified.values() if answer.view == now.view and answer.id == now.id]
    problem = next((answer.problem for answer in answers if answer.problem is not None), None)
    if problem is None and answers and now.id not in situation.manifests:
        problem = GONE
    if problem is not None:
        return _next_best(now, problem, situation.manifests)
    good = {rank for answer in answers for rank in answer.ranks}
    return (
        now.model_copy(update={"final": True})
        if good >= membership.active_ranks(situation.view, situation.left)
        else None
    )


def missing(view: View, now: Resume, verified: Iterable[Verified]) -> tuple[int, ...]:
    """Ranks of the view that have not reported on the offered checkpoint."""
    said = {rank for answer in verified if (answer.view, answer.id) == (now.view, now.id) for rank in answer.ranks}
    return tuple(sorted(set(view.incarnations()) - said))


def _next_best(now: Resume, problem: str, manifests: Mapping[str, Manifest]) -> Resume:
    assert now.id is not None
    reasons = dict(list({**now.reasons, now.id: problem[:500]}.items())[-MAX_REASONS:])
    best = _before(now.id, manifests, {*now.reasons, now.id})
    return Resume(view=now.view, id=best, final=best is None, reasons=reasons)


def _before(checkpoint_id: str, manifests: Mapping[str, Manifest], refused: set[str]) -> str | None:
    """The newest ancestor that still exists; if the ancestors are unknown, the newest with a lower step."""
    manifest = manifests.get(checkpoint_id)
    ancestors = manifest.lineage if manifest is not None else ()
    best = next((item for item in ancestors if item in manifests and item not in refused), None)
    if best is not None or (manifest is not None and len(ancestors) < LINEAGE):
        return best
    step = step_of(ancestors[-1] if ancestors else checkpoint_id)
    older = [item for item in manifests.values() if item.step < step and item.id not in refused]
    return max(older, key=lambda item: (item.step, item.token)).id if older else None


def step_of(checkpoint_id: str) -> int:
    """The step that a checkpoint's id names; -1 for another id."""
    step = checkpoint_id.partition("-")[0]
    return int(step) if step.isdecimal() else -1
