"""What torchrun tells a worker of itself: where it is placed, and how often its node may still start anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from instep.wire import Message

NO_RUN_ID: Final = "none"
"""torchrun's id where none was given: it does not tell one start from another."""
MAX_RUN_ID: Final = 128

_VARIABLES = {
    "restarts": "TORCHELASTIC_RESTART_COUNT",
    "max_restarts": "TORCHELASTIC_MAX_RESTARTS",
    "group_rank": "GROUP_RANK",
}


def elastic(environ: Mapping[str, str]) -> Message | None:
    """None for a process that torchrun did not start. What is no number is left out: it is for people only."""
    told: Message = {name: _number(environ.get(variable, "")) for name, variable in _VARIABLES.items()}
    if told["restarts"] is None or told["max_restarts"] is None:
        return None
    run_id = environ.get("TORCHELASTIC_RUN_ID", "")
    return {**told, "run_id": "" if run_id == NO_RUN_ID else run_id[:MAX_RUN_ID]}


def has_several_nodes(environ: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process, and its world has more than one node."""
    return "TORCHELASTIC_RUN_ID" in environ and (_number(environ.get("GROUP_WORLD_SIZE", "")) or 1) > 1


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
