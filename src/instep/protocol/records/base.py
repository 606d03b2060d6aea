"""What all records share: JSON documents, checked when read, because anyone with access to etcd can write there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from instep.names import INCARNATION_LENGTH

MAX_RANKS = 1_000_000
"""Upper bound for a damaged document; the design is for 10,240."""


class WorkerId(NamedTuple):
    """Identifies one process of a run. The incarnation alone does not: each process draws it at random."""

    rank: int
    incarnation: str

    def __str__(self) -> str:
        """The form used in keys."""
        return f"{self.rank}-{self.incarnation}"


class Record(BaseModel):
    """A document in etcd. Unknown fields are ignored, because a newer version may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    def encode(self) -> str:
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        """Raises ValueError (pydantic's) if the text is no such document."""
        return cls.model_validate_json(text)

    @classmethod
    def decode_or_none(cls, text: str | bytes | None) -> Self | None:
        """None for a missing or unreadable document: a damaged record must not stop an agent."""
        if text is None:
            return None
        try:
            return cls.decode(text)
        except (ValueError, RecursionError):
            return None


def format_ranks(ranks: Iterable[int]) -> str:
    """`0-3,6` for 0, 1, 2, 3, 6."""
    parts: list[str] = []
    first = last = -9
    for rank in [*sorted(ranks), -1]:
        if rank == last + 1:
            last = rank
            continue
        if first >= 0:
            parts.append(str(first) if first == last else f"{first}-{last}")
        first = last = rank
    return ",".join(parts)


def parse_ranks(text: str) -> tuple[int, ...]:
    """The inverse of format_ranks. Raises ValueError for other text, and for more than a million ranks."""
    ranks: list[int] = []
    for part in filter(None, text.split(",")):
        if not re.fullmatch(r"[0-9]{1,7}(-[0-9]{1,7})?", part):
            raise ValueError(f"{part[:40]!r} is not a range of ranks")
        first, _, last = part.partition("-")
        more = range(int(first), int(last or first) + 1)
        if not more or len(ranks) + len(more) > MAX_RANKS:
            raise ValueError(f"{part!r} is not a range of ranks, or one of too many")
        ranks.extend(more)
    return tuple(ranks)


def from_short(ranks_text: str, joined: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    ranks = parse_ranks(ranks_text)
    if len(joined) != len(ranks) * INCARNATION_LENGTH:
        raise ValueError("there must be one incarnation for each rank")
    starts = range(0, len(joined), INCARNATION_LENGTH)
    return ranks, tuple(joined[start : start + INCARNATION_LENGTH] for start in starts)
