"""Which checkpoints this node's workers read: marked on the node's lease, so that nobody forgets them meanwhile."""

from __future__ import annotations

from instep.agent.retrying_writer import ATTEMPT_S, RetryingWriter
from instep.errors import EtcdFull, LeaseLost
from instep.etcd import Client, Compare, Op
from instep.protocol import checkpoints
from instep.protocol.keys import Keys
from instep.protocol.records import Manifest
from instep.recipes.session import Session


class CheckpointPins:
    """One key a checkpoint, however many of the node's workers read it. Promise: once `mark` has returned a manifest,
    the checkpoint stays until nobody here reads it. Limit: while the lease lasts."""

    def __init__(self, node: str, client: Client, keys: Keys, session: Session, writer: RetryingWriter) -> None:
        self._node = node
        self._client = client
        self._keys = keys
        self._session = session
        self._writer = writer
        self._by_checkpoint: dict[str, set[str]] = {}
        self._marked_at: dict[str, int] = {}
        """The revision of the newest mark, by checkpoint: an older deletion that arrives late must not take it away."""

    def __repr__(self) -> str:
        return f"CheckpointPins({', '.join(self._by_checkpoint) or 'none'})"

    def reads(self, reader: str, checkpoint_id: str) -> None:
        self._by_checkpoint.setdefault(checkpoint_id, set()).add(reader)

    def has_read(self, reader: str, checkpoint_id: str) -> None:
        readers = self._by_checkpoint.get(checkpoint_id, set())
        readers.discard(reader)
        if not readers and self._by_checkpoint.pop(checkpoint_id, None) is not None:
            self._writer.start(self._unmark(checkpoint_id))

    def gone(self, reader: str) -> None:
        for checkpoint_id in list(self._by_checkpoint):
            if reader in self._by_checkpoint[checkpoint_id]:
                self.has_read(reader, checkpoint_id)

    async def mark(self, checkpoint_id: str) -> Manifest | None:
        """The manifest, or None when the checkpoint was forgotten. Raises EtcdError."""
        lease_id = self._session.lease_id
        if not lease_id:
            raise LeaseLost("the node has no lease at present: try again", lease_id=0)
        txn = checkpoints.start_reading(self._keys, checkpoint_id, self._node, lease_id)
        result = await self._client.txn(txn.compares, txn.then, timeout_s=ATTEMPT_S)
        if not result.succeeded:
            return None
        self._marked_at[checkpoint_id] = result.revision
        record = result.found[-1]
        return Manifest.decode_or_none(record.value) if record is not None else None

    def mark_all(self) -> None:
        """On a new lease."""
        for checkpoint_id in list(self._by_checkpoint):
            self._writer.start(self._mark_again(checkpoint_id))

    async def _mark_again(self, checkpoint_id: str) -> None:
        async def attempt() -> None:
            if checkpoint_id in self._by_checkpoint and self._session.lease_id:
                await self.mark(checkpoint_id)

        await self._writer.retry_until_done(attempt)

    async def _unmark(self, checkpoint_id: str) -> None:
        key, marked_at = self._keys.reader(checkpoint_id, self._node), self._marked_at.pop(checkpoint_id, 0)

        async def attempt() -> None:
            if checkpoint_id in self._by_checkpoint:
                return
            try:
                unless_marked_again = [Compare.mod_revision(key, "<", marked_at + 1)] if marked_at else []
                await self._client.txn(unless_marked_again, [Op.delete(key)], timeout_s=ATTEMPT_S)
            except EtcdFull:  # it may refuse each txn, but it deletes
                await self._client.delete(key, timeout_s=ATTEMPT_S)

        await self._writer.retry_until_done(attempt)
