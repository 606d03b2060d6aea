"""Kinds of healthy training that look unusual. None of them may lead to an action."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from benchmarks.tuner.faults import NO_CLIPPING, STANDARD, UNCLIPPED, plan
from benchmarks.tuner.text import SYMBOLS, Batch, Text, draw
from benchmarks.tuner.world import Case, Incident, Moment, World, warm_up

PERIOD = 150
"""Steps between two warm restarts, and of one stage of the curriculum."""


def mixed(moment: Moment, dice: torch.Generator) -> Batch:
    """Each batch comes from one of three very different texts."""
    return draw(("prose", "code", "tables")[int(torch.randint(3, (), generator=dice))], moment.size, dice)


def changed(moment: Moment, dice: torch.Generator) -> Batch:
    """Another text from one step on, and nobody announces it."""
    return draw("prose" if moment.index < moment.first else "code", moment.size, dice)


def jumped(moment: Moment, dice: torch.Generator) -> Batch:
    """A very different text from one step on: the loss nearly doubles, and then falls."""
    return draw("prose" if moment.index < moment.first else "tables", moment.size, dice)


def in_order(moment: Moment, dice: torch.Generator) -> Batch:
    """The data is not shuffled: every 75 batches, 12 in a row come from a harder text."""
    return draw("code" if moment.index % 75 >= 63 else "prose", moment.size, dice)


def with_outliers(moment: Moment, dice: torch.Generator) -> Batch:
    """One batch of 40 is noise."""
    batch = draw("prose", moment.size, dice)
    if (moment.index * 2654435761 >> 7) % 40:
        return batch
    noise = torch.randint(SYMBOLS, batch.targets.shape, generator=dice)
    return Batch(noise, noise)


def curriculum(moment: Moment, dice: torch.Generator) -> Batch:
    """Easy text first; each stage hands over to a harder one within 50 steps."""
    stages: tuple[Text, ...] = ("tables", "prose", "code")
    stage, into = divmod(moment.index, PERIOD)
    stage = min(stage, len(stages) - 1)
    if stage and into < 50 and torch.rand((), generator=dice) > into / 50:
        stage -= 1
    return draw(stages[stage], moment.size, dice)


def repeated(moment: Moment, dice: torch.Generator) -> Batch:
    return draw("short", moment.size, dice)


def cosine(step: int) -> float:
    """A cosine that starts again every PERIOD steps."""
    return min(1.0, (step + 1) / 50) * (0.05 + 0.95 * (1 + math.cos(math.pi * (step % PERIOD) / PERIOD)) / 2)


def evaluates(world: World) -> None:
    world.evaluating = True


HEALTHY: tuple[Case, ...] = (
    replace(STANDARD, name="small_batches", about="two pieces of text per batch", size=lambda step, first: 2),
    replace(UNCLIPPED, name="no_clipping", about="no clipping, beta2 0.999"),
    replace(STANDARD, name="high_lr", about="lr x4", lr=1.2e-2),
    replace(STANDARD, name="mixed_data", about="each batch from one of three texts", draw=mixed),
    replace(STANDARD, name="data_change", about="another text from one step on, unannounced", draw=changed),
    replace(STANDARD, name="data_jump", about="a very different text from one step on, unannounced", draw=jumped),
    replace(STANDARD, name="in_order", about="12 batches in a row from a harder text, every 75", draw=in_order),
    replace(STANDARD, name="warm_restarts", about="a cosine that restarts every 150 steps", lr=6e-3, schedule=cosine),
    replace(STANDARD, name="outliers", about="one batch of 40 is noise", draw=with_outliers),
    replace(STANDARD, name="outliers_n", about="the same, no clipping", clip=NO_CLIPPING, draw=with_outliers),
    replace(STANDARD, name="curriculum", about="easy text first, harder text in stages", draw=curriculum),
    replace(
        STANDARD,
        name="evaluation",
        about="a pause for evaluation every 50 steps",
        incidents=tuple(Incident(after, evaluates) for after in range(-250, 300, 50)),
    ),
    replace(UNCLIPPED, name="lr_warm_up", about="300 steps of warm-up to lr x3", lr=9e-3, schedule=warm_up(300)),
    replace(STANDARD, name="learned_by_heart", about="4000 letters only, repeated until known", draw=repeated),
    replace(STANDARD, name="sparse_reports", about="a loss is reported every 10 steps", report_every=10),
    replace(
        STANDARD,
        name="batch_change",
        about="the batch shrinks to a quarter at one step, unannounced",
        size=lambda step, first: 8 if step < first else 2,
    ),
    replace(
        STANDARD,
        name="person_changes",
        about="a person halves lr, and doubles it again 120 steps later",
        incidents=(plan(0, lr=0.5), plan(120, lr=2.0)),
    ),
    replace(
        STANDARD,
        name="person_raises",
        about="a person sets lr x3, which this run bears",
        incidents=(plan(0, lr=3.0),),
    ),
    replace(
        STANDARD,
        name="rank_replaced",
        about="a rank is restarted: a new view continues from the newest checkpoint",
        incidents=(Incident(0, World.replace_rank), Incident(100, World.replace_rank)),
    ),
)
