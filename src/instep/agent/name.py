"""The name of a node in etcd, and how two nodes with one name are distinguished."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from typing import Final

from instep.errors import InstepError
from instep.runtime import RuntimeFolder

HOST_CHARACTERS: Final = 20
RANDOM_BYTES: Final = 8


class NodeNameTaken(InstepError):
    """Another node holds this node's name: this node takes another one."""


@dataclass(frozen=True, slots=True)
class NodeName:
    """`claim` is drawn with the name and kept with it: two nodes with the same name have different claims. `fixed`:
    workers of this node already train under the name."""

    name: str
    claim: str
    fixed: bool = False


def node_name(folder: RuntimeFolder, known: str) -> NodeName:
    """The name that its workers know, else the one kept in the folder, else a new one.

    The promises of a dead agent are recorded under its name. A name that was kept by another machine, or in another
    folder, is ignored: machine images are copied with everything in them.
    """
    kept = _kept(folder)
    if known and (kept is None or kept.name != known):
        return NodeName(known, secrets.token_hex(RANDOM_BYTES), fixed=True)
    if kept is not None:
        return NodeName(kept.name, kept.claim, fixed=bool(known))
    return NodeName(f"{_host()}-{secrets.token_hex(RANDOM_BYTES)}", secrets.token_hex(RANDOM_BYTES))


def keep_node_name(folder: RuntimeFolder, name: NodeName) -> None:
    """Keeps the name for an agent that another worker starts later."""
    text = json.dumps({"name": name.name, "claim": name.claim, "place": folder.place()})
    if not folder.node.exists() or folder.node.read_text() != text:
        folder.node.write_text(text)


def forget_node_name(folder: RuntimeFolder) -> None:
    """Lets the next agent draw a new name."""
    folder.node.unlink(missing_ok=True)


def _kept(folder: RuntimeFolder) -> NodeName | None:
    try:
        document = json.loads(folder.node.read_text())
        if not folder.place() or document["place"] != folder.place():
            return None
        return NodeName(str(document["name"]), str(document["claim"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _host() -> str:
    """The tail of the host name before the first dot, because that distinguishes the hosts of a domain."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in os.uname().nodename.partition(".")[0])
    return kept[-HOST_CHARACTERS:].strip("-") or "node"
