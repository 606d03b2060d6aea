"""What a node is called in etcd."""

from __future__ import annotations

import os
from typing import Final

from instep.runtime import RuntimeFolder

HOST_CHARACTERS: Final = 14


def node_name(folder: RuntimeFolder, known: str) -> str:
    """As its workers know it, else as the folder keeps it, else a new one.

    What an agent promised before it died still stands in its name.
    """
    kept = folder.node.read_text().strip() if folder.node.exists() else ""
    return known or kept or f"{_host()}-{os.urandom(2).hex()}"


def keep_node_name(folder: RuntimeFolder, name: str) -> None:
    """For an agent that another worker starts later."""
    if not folder.node.exists() or folder.node.read_text().strip() != name:
        folder.node.write_text(name)


def _host() -> str:
    kept = "".join(c if c.isalnum() or c == "-" else "-" for c in os.uname().nodename)
    return kept[-HOST_CHARACTERS:].strip("-") or "node"
