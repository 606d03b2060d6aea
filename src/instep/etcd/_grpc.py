"""grpc, imported in one place so that its own writing to stderr is off unless the user has asked for it."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio as aio

# What a finished stream gives instead of a message; the published stubs leave it out.
EOF = aio.EOF  # type: ignore[attr-defined]  # it is there, and grpc's stubs do not know it

__all__ = ["EOF", "aio", "grpc"]
