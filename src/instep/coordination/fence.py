"""The right to write as the one in front: a key that must still be the one that was created at a certain revision."""

from __future__ import annotations

from dataclasses import dataclass

from instep.coordination.token import revision_of
from instep.etcd import Compare, KeyValue


@dataclass(frozen=True, slots=True)
class Fence:
    """`token` rises from holder to holder and is never given twice: the key's create revision, above which a run puts
    its epoch (see token.py).

    Promise: a txn with `compare()` does nothing once the key is gone or another's. Limit: what lies outside etcd is
    protected only if it refuses tokens lower than the highest it has seen.
    """

    key: str
    token: int

    def compare(self) -> Compare:
        """The comparison for a transaction: it fails once another holder exists."""
        return Compare.create_revision(self.key, "==", revision_of(self.token))

    def is_held(self, key: KeyValue | None) -> bool:
        """Whether that is the key that the token came from; None where there is none."""
        return key is not None and key.create_revision == revision_of(self.token)
