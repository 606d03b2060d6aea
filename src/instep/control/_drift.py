"""Values that are agreed and applied but that an optimizer does not hold, because something else writes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from instep.control._picture import Picture
from instep.protocol.records import format_ranks

_CURE = "another part of the script overwrites it; the training's log says what to do"


def drift_of_receipts(picture: Picture, number: int | None) -> dict[str, str]:
    """By hyperparameter of plan `number`, the ranks that do not use its value, as their receipts say."""
    receipts = picture.receipts.get(number, {}) if number is not None else {}
    return _by_name((rank, names) for receipt in receipts.values() for rank, names in receipt.drift.items())


def drift_now(picture: Picture) -> dict[str, str]:
    """By hyperparameter, the ranks that do not use it as agreed, as they reported last."""
    return _by_name((rank, item.drift) for rank, item in picture.metrics.items())


def drift_sentence(drift: Mapping[str, str]) -> str:
    """`the optimizer of rank 0-7 does not hold lr: another part ...`; empty where all is as agreed."""
    if not drift:
        return ""
    named = ", ".join(f"the optimizer of rank {ranks} does not hold {name}" for name, ranks in drift.items())
    return f"{named}: {_CURE}"


def _by_name(found: Iterable[tuple[int, Iterable[str]]]) -> dict[str, str]:
    ranks: dict[str, set[int]] = {}
    for rank, names in found:
        for name in names:
            ranks.setdefault(name, set()).add(rank)
    return {name: format_ranks(ranks[name]) for name in sorted(ranks)}
