"""The etcd keys of a rendezvous. Every node watches `state/`; only the coordinator watches the rest."""

from __future__ import annotations

from dataclasses import dataclass

from instep.protocol.keys import Keys


@dataclass(frozen=True, slots=True)
class RendezvousKeys:
    """The keys below `{namespace}/{run}/rendezvous/`. Raises SettingsError for names that cannot be part of a key."""

    namespace: str
    run: str

    def __post_init__(self) -> None:
        Keys(self.namespace, self.run)

    @property
    def root(self) -> str:
        return f"{Keys(self.namespace, self.run).root}rendezvous/"

    @property
    def state(self) -> str:
        """Prefix: each node has one watch on it."""
        return f"{self.root}state/"

    @property
    def round(self) -> str:
        return f"{self.state}round"

    @property
    def closed(self) -> str:
        return f"{self.state}closed"

    def refused(self, node: str) -> str:
        return f"{self.state}refused/{node}"

    @property
    def nodes(self) -> str:
        """Prefix: one registration per node, on its lease."""
        return f"{self.root}nodes/"

    @property
    def gone(self) -> str:
        """Prefix: nodes that have left permanently. On no lease, because that stays true."""
        return f"{self.root}gone/"

    def gone_of(self, node: str) -> str:
        return f"{self.gone}{node}"

    @property
    def election(self) -> str:
        """Prefix: candidates for the coordinator; the oldest coordinates."""
        return f"{self.root}election/"
