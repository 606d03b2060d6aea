"""What torchrun tells a worker of itself: where it is placed, and how often its node may still start anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from instep.wire.documents import Elastic

NO_RUN_ID: Final = "none"
"""torchrun's id where none was given: it does not tell one start from another."""
MAX_RUN_ID: Final = 128


def elastic(environ: Mapping[str, str]) -> Elastic | None:
    """None for a process that torchrun did not start. What is no number is left out: it is for people only."""
    restarts = _number(environ.get("TORCHELASTIC_RESTART_COUNT", ""))
    max_restarts = _number(environ.get("TORCHELASTIC_MAX_RESTARTS", ""))
    if restarts is None or max_restarts is None:
        return None
    run_id = environ.get("TORCHELASTIC_RUN_ID", "")
    group_rank = _number(environ.get("GROUP_RANK", ""))
    return Elastic(restarts, max_restarts, group_rank, "" if run_id == NO_RUN_ID else run_id[:MAX_RUN_ID])


def has_several_nodes(environ: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process, and its world has more than one node."""
    return "TORCHELASTIC_RUN_ID" in environ and (_number(environ.get("GROUP_WORLD_SIZE", "")) or 1) > 1


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
