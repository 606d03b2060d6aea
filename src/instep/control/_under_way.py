"""What a run does, or is about to do, beside training on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from instep.control._facts import Facts
from instep.control._orders import what_of
from instep.control._picture import Picture
from instep.text import one_line


@dataclass(frozen=True, slots=True)
class PausedFacts(Facts):
    """All ranks wait before `step`, or will when they come to it; `why` says who wanted it."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class StoppingFacts(Facts):
    """`step` is the first that is not run, `save_at` the one that is saved, if any; `why` says who wanted it."""

    step: int
    save_at: int | None
    why: str


@dataclass(frozen=True, slots=True)
class SavingFacts(Facts):
    """A checkpoint that is being written, and not committed yet."""

    id: str
    step: int
    rank: int


@dataclass(frozen=True, slots=True)
class WaitingFacts(Facts):
    """A command that stands and that no plan under way is for."""

    command_id: str
    kind: str
    name: str | None
    what: str
    author: str | None
    reason: str | None
    revision: int


def paused_of(picture: Picture) -> PausedFacts | None:
    course = picture.course
    if course.paused_at is None:
        return None
    return PausedFacts(course.paused_at, one_line(course.reason or "paused"))


def stopping_of(picture: Picture) -> StoppingFacts | None:
    course = picture.course
    if course.ends_at is None:
        return None
    return StoppingFacts(course.ends_at, course.save_at, one_line(course.reason or "stopped"))


def saving_of(picture: Picture) -> SavingFacts | None:
    saving = picture.save_under_way()
    return SavingFacts(saving.id, saving.step, saving.rank) if saving is not None and picture.live else None


def waiting_of(picture: Picture) -> tuple[WaitingFacts, ...]:
    """The oldest first: they are carried out in this order."""
    plan = picture.open_plan()
    under_way = plan.change_id if plan is not None and plan.kind != "config" else None
    return tuple(
        WaitingFacts(
            command_id=order.id,
            kind=command.kind,
            name=command.name,
            what=what_of(command.kind, command.name, save=command.save, node=command.node),
            author=command.author,
            reason=command.reason,
            revision=order.revision,
        )
        for order in picture.orders_by_age()
        if order.id != under_way and (command := order.command) is not None
    )
