"""What a worker process and its node's agent send each other: typed messages, their frames, and four shared words."""

from __future__ import annotations

PROTOCOL = 5
"""Raised when the messages or the records in etcd change: processes of different versions then say so."""
CANNOT_SERVE = "its agent cannot serve: "
"""What an agent's line for the worker that has started it begins with."""
