"""The training: a character transformer of 70,080 parameters and AdamW, for all ranks at once.

The ranks of a data-parallel run hold equal parameters and average their gradients. So one process computes the
gradient of the average loss over the batches of all ranks: the same update, without a process group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.adamw import adamw

from benchmarks.tuner.text import CONTEXT, SYMBOLS, Batch

WIDTH = 48
HEADS = 4
LAYERS = 2
BETA1 = 0.9
EPSILON = 1e-8

_LAYER: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("norm1.gain", (WIDTH,)),
    ("norm1.bias", (WIDTH,)),
    ("attend.weight", (WIDTH, 3 * WIDTH)),
    ("attend.bias", (3 * WIDTH,)),
    ("mix.weight", (WIDTH, WIDTH)),
    ("mix.bias", (WIDTH,)),
    ("norm2.gain", (WIDTH,)),
    ("norm2.bias", (WIDTH,)),
    ("wide.weight", (WIDTH, 4 * WIDTH)),
    ("wide.bias", (4 * WIDTH,)),
    ("narrow.weight", (4 * WIDTH, WIDTH)),
    ("narrow.bias", (WIDTH,)),
)
SHAPES: dict[str, tuple[int, ...]] = {
    "symbols": (SYMBOLS, WIDTH),
    "places": (CONTEXT, WIDTH),
    **{f"{layer}.{name}": shape for layer in range(LAYERS) for name, shape in _LAYER},
    "norm.gain": (WIDTH,),
    "norm.bias": (WIDTH,),
    "head": (WIDTH, SYMBOLS),
}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())


def places_of(*ends: str) -> list[int]:
    """Where the parameters are whose names end so, in `State.parameters`."""
    found: list[int] = []
    start = 0
    for name, shape in SHAPES.items():
        if name.endswith(ends):
            found += range(start, start + math.prod(shape))
        start += math.prod(shape)
    return found


@dataclass(frozen=True, slots=True)
class State:
    """Parameters and optimizer state, as a checkpoint holds them."""

    parameters: Tensor
    first: Tensor
    second: Tensor
    updates: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one update uses. `fp16_scale` emulates gradients in half precision with a constant loss scale."""

    lr: float
    clip: float
    weight_decay: float
    beta2: float
    fp16_scale: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What the ranks see in one step: a loss each, and the norm of the averaged gradient."""

    losses: tuple[float, ...]
    grad_norm: float


class Model:
    """Deterministic: the same seed and the same batches give the same bits on one machine."""

    def __init__(self, seed: int) -> None:
        self._flat = torch.zeros(SIZE)
        self._first = torch.zeros(SIZE)
        self._second = torch.zeros(SIZE)
        self._updates = torch.zeros(())
        self._parts: dict[str, Tensor] = {}
        dice, start = torch.Generator().manual_seed(seed), 0
        for name, shape in SHAPES.items():
            part = self._flat[start : start + math.prod(shape)].view(shape)
            start += part.numel()
            if name.endswith("gain"):
                part.fill_(1.0)
            elif len(shape) == 2:
                std = 0.02 if name in ("symbols", "places") else 1 / math.sqrt(shape[0])
                part.normal_(0.0, std, generator=dice)
            self._parts[name] = part.detach().requires_grad_()
        self._leaves = list(self._parts.values())

    def save(self) -> State:
        return State(self._flat.clone(), self._first.clone(), self._second.clone(), self._updates.item())

    def load(self, state: State) -> None:
        self._flat.copy_(state.parameters)
        self._first.copy_(state.first)
        self._second.copy_(state.second)
        self._updates.fill_(state.updates)

    def update(self, batches: Sequence[Batch], settings: Settings) -> Measured:
        """One step of all ranks."""
        losses = self._losses(
            torch.cat([batch.inputs for batch in batches]), torch.cat([batch.targets for batch in batches])
        )
        by_rank = losses.view(len(batches), -1).mean(1)
        weights = torch.tensor([batch.scale / len(batches) for batch in batches])
        parts = torch.autograd.grad((by_rank * weights).sum(), self._leaves)
        gradient = torch.cat([part.reshape(-1) for part in parts])
        if settings.fp16_scale is not None:
            gradient = (gradient * settings.fp16_scale).half().float() / settings.fp16_scale
        norm = gradient.norm()
        if not norm <= settings.clip:  # a norm that is NaN spoils the update, as clip_grad_norm_ would
            gradient *= settings.clip / (norm + 1e-6)
        adamw(
            [self._flat],
            [gradient],
            [self._first],
            [self._second],
            [],
            [self._updates],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=settings.beta2,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            eps=EPSILON,
            maximize=False,
        )
        seen = [
            loss * batch.scale if math.isnan(batch.scale) else loss
            for loss, batch in zip(by_rank.tolist(), batches, strict=True)
        ]
        return Measured(tuple(seen), norm.item())

    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        """The mean loss per symbol in nats."""
        with torch.no_grad():
            return self._losses(inputs, targets).mean().item()

    def _losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = self._logits(inputs)
        return functional.cross_entropy(logits, targets.reshape(-1), reduction="none")

    def _logits(self, inputs: Tensor) -> Tensor:
        parts = self._parts
        flow = (functional.embedding(inputs, parts["symbols"]) + parts["places"]).view(-1, WIDTH)
        for layer in range(LAYERS):
            flow = self._layer(f"{layer}.", flow, len(inputs))
        return functional.layer_norm(flow, (WIDTH,), parts["norm.gain"], parts["norm.bias"]) @ parts["head"]

    def _layer(self, prefix: str, flow: Tensor, size: int) -> Tensor:
        def part(name: str) -> Tensor:
            return self._parts[prefix + name]

        norm = functional.layer_norm(flow, (WIDTH,), part("norm1.gain"), part("norm1.bias"))
        attend = torch.addmm(part("attend.bias"), norm, part("attend.weight"))
        query, key, value = attend.view(size, CONTEXT, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        flow = torch.addmm(part("mix.bias"), seen.transpose(1, 2).reshape(-1, WIDTH), part("mix.weight")) + flow
        norm = functional.layer_norm(flow, (WIDTH,), part("norm2.gain"), part("norm2.bias"))
        wide = torch.addmm(part("wide.bias"), norm, part("wide.weight")).relu()
        return torch.addmm(part("narrow.bias"), wide, part("narrow.weight")) + flow
