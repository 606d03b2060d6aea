"""The right to write as the one in front: a key that must still be the one that was created at a certain revision."""

from __future__ import annotations

from dataclasses import dataclass

from instep.etcd import Compare


@dataclass(frozen=True, slots=True)
class Fence:
    """`token`, the key's create revision, rises from holder to holder and is never given twice.

    Promise: a txn with `compare()` does nothing once the key is gone or another's. Limit: what lies outside etcd is
    protected only if it refuses tokens lower than the highest it has seen.
    """

    key: str
    token: int

    def compare(self) -> Compare:
        return Compare.create_revision(self.key, "==", self.token)
