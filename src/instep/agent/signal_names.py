"""Signals in words."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """`signal 9 (SIGKILL)`; a number without a name is returned as it is."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
