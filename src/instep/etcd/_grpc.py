"""grpc, imported in one place: its own output on stderr is off unless the user has enabled it."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio as aio

# What a finished stream returns instead of a message; the published stubs lack it.
EOF = aio.EOF  # type: ignore[attr-defined]  # it exists, and grpc's stubs lack it

__all__ = ["EOF", "aio", "grpc", "rpc_error"]


def rpc_error(code: grpc.StatusCode, details: str) -> aio.AioRpcError:
    """An error like gRPC's own, for a call that this client ends itself."""
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details, None)
