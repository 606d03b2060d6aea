"""Twelve faults: eight that published runs suffered from, and four of our own (the last ones)."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch

from benchmarks.tuner.model import places_of
from benchmarks.tuner.text import SYMBOLS, Batch
from benchmarks.tuner.world import PERSON, Case, Incident, Moment, Spoil, World

NO_CLIPPING = 1e9
FP16_SCALE = 2.0**13


def plan(after: int = 0, **factors: float) -> Incident:
    """A person's change: each value is multiplied."""

    def happen(world: World) -> None:
        world.set({name: world.values[name] * factor for name, factor in factors.items()}, author=PERSON)

    return Incident(after, happen)


def random_targets(count: int, *ranks: int) -> Spoil:
    """The targets of `count` batches are noise."""

    def spoil(batch: Batch, moment: Moment, dice: torch.Generator) -> Batch:
        if not 0 <= moment.index - moment.first < count or moment.rank not in ranks:
            return batch
        return Batch(batch.inputs, torch.randint(SYMBOLS, batch.targets.shape, generator=dice))

    return spoil


def one_symbol(count: int) -> Spoil:
    """`count` batches hold one symbol only, over and over."""

    def spoil(batch: Batch, moment: Moment, dice: torch.Generator) -> Batch:
        if not 0 <= moment.index - moment.first < count:
            return batch
        same = torch.full_like(batch.inputs, moment.first % 96)
        return Batch(same, same)

    return spoil


def scaled(factor: float, count: int = 1, ranks: tuple[int, ...] = (0, 1)) -> Spoil:
    """The gradients of `count` batches are multiplied."""

    def spoil(batch: Batch, moment: Moment, dice: torch.Generator) -> Batch:
        if not 0 <= moment.index - moment.first < count or moment.rank not in ranks:
            return batch
        return replace(batch, scale=factor)

    return spoil


def flip_two_weights(world: World) -> None:
    """Two weights that every symbol passes grow by 2^13, as by a flipped bit of their exponents.

    The highest bit would make them so large that the next loss is NaN; other places do little harm.
    """
    state = world.model.save()
    places = random.Random(world.seed).sample(places_of("mix.weight", "wide.weight"), 2)
    state.parameters[places] *= 2.0**13
    world.model.load(state)


def lose_second_moments(world: World) -> None:
    """The newest checkpoint was written without the optimizer's second moments: updates after it are far too large."""
    state = world.checkpoints.newest.state
    world.checkpoints.damage_newest(replace(state, second=torch.zeros_like(state.second)))


def go_back(world: World) -> None:
    world.restore(world.checkpoints.newest.id, author=PERSON)


STANDARD = Case(name="standard", about="")
UNCLIPPED = Case(name="unclipped", about="", clip=NO_CLIPPING, beta2=0.999)
FP16 = replace(UNCLIPPED, name="fp16", fp16_scale=FP16_SCALE)
BOTH = (0, 1)

FAULTS: tuple[Case, ...] = (
    replace(UNCLIPPED, name="lr_x100", about="a person sets lr x100, no clipping", incidents=(plan(lr=100),)),
    replace(STANDARD, name="lr_x30", about="a person sets lr x30", incidents=(plan(lr=30),)),
    replace(STANDARD, name="targets", about="40 batches with random targets", spoil=random_targets(40, *BOTH)),
    replace(UNCLIPPED, name="targets_n", about="the same, no clipping", spoil=random_targets(40, *BOTH)),
    replace(UNCLIPPED, name="one_symbol", about="60 batches of one symbol, no clipping", spoil=one_symbol(60)),
    replace(
        STANDARD,
        name="bit_flips",
        about="two weights x2^13, as by flipped bits",
        incidents=(Incident(0, flip_two_weights),),
    ),
    replace(UNCLIPPED, name="gradient", about="one gradient x1e4, no clipping", spoil=scaled(1e4)),
    replace(FP16, name="fp16", about="fp16, loss scale 2^13, 4 batches x100", spoil=scaled(100.0, 4)),
    replace(UNCLIPPED, name="one_rank", about="60 batches of rank 1 with random targets", spoil=random_targets(60, 1)),
    replace(
        UNCLIPPED,
        name="bad_restore",
        about="a person goes back to a checkpoint without second moments",
        incidents=(Incident(-1, lose_second_moments), Incident(0, go_back)),
    ),
    replace(
        UNCLIPPED,
        name="decay",
        about="a person sets weight decay x100",
        incidents=(plan(weight_decay=100),),
    ),
    replace(STANDARD, name="nan_rank", about="one batch of rank 1 is NaN", spoil=scaled(math.nan, 1, (1,))),
)
