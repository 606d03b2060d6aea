"""The right to write: a key that must still be the one that was created at a certain revision."""

from __future__ import annotations

from dataclasses import dataclass

from instep.etcd import Compare, KeyValue
from instep.recipes.token import revision_of


@dataclass(frozen=True, slots=True)
class Fence:
    """`token` rises from holder to holder and is never given twice. It is the key's create revision; a run puts its
    epoch above it (see token.py).

    Promise: a transaction with `compare()` does nothing once the key is gone or belongs to another. Limit: what is
    outside etcd is protected only if it refuses tokens lower than the highest one it has seen.
    """

    key: str
    token: int

    def compare(self) -> Compare:
        """The comparison for a transaction: it fails once another holder exists."""
        return Compare.create_revision(self.key, "==", revision_of(self.token))

    def is_held(self, key: KeyValue | None) -> bool:
        """Whether `key` is the one that the token came from; None for a missing key."""
        return key is not None and key.create_revision == revision_of(self.token)
