"""What each rank wrote down about itself when its training ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instep.errors import InstepError


@dataclass(frozen=True, slots=True)
class RankProof:
    """`used` holds (step, values) wherever the values that an update used differ from those of the step before."""

    rank: int
    steps: int
    used: tuple[tuple[int, Mapping[str, float]], ...]
    sha256: str
    grpc: bool
    threads: tuple[str, ...]
    more: Mapping[str, Any] = field(default_factory=dict)

    def first_step_with(self, name: str, value: float) -> int | None:
        """The first step whose update used this value, None when no update did."""
        return next((step for step, values in self.used if values.get(name) == value), None)


def parse(text: str) -> RankProof:
    """Raises InstepError when the text is no proof."""
    try:
        facts = json.loads(text)
        return RankProof(
            rank=int(facts.pop("rank")),
            steps=int(facts.pop("steps")),
            used=tuple((int(step), dict(values)) for step, values in facts.pop("used")),
            sha256=str(facts.pop("sha256")),
            grpc=bool(facts.pop("grpc")),
            threads=tuple(facts.pop("threads")),
            more=facts,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InstepError(f"a rank's proof cannot be read ({error!r}): {text[:80]!r}") from None


def read_proofs(folder: Path) -> tuple[RankProof, ...]:
    """The proofs in a folder, by rank; those that are missing are for the checks to notice."""
    proofs = (parse(path.read_text()) for path in folder.glob("rank-*.json"))
    return tuple(sorted(proofs, key=lambda proof: proof.rank))
