"""The client: etcd's operations as methods."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self

from instep.errors import Compacted, EtcdDenied, EtcdError, LeaseLost, SettingsError
from instep.etcd import _wire
from instep.etcd._auth import Authenticator, Credentials
from instep.etcd._encoding import check_size, encode_key, encode_value, key_value, prefix_range
from instep.etcd._endpoints import parse_endpoints
from instep.etcd._failures import not_permitted
from instep.etcd._history import StoreHistory
from instep.etcd._ops import Compare, Op, TxnSubject, txn_request, txn_result
from instep.etcd._permissions import MAX_ASKED, MAX_NAMED, Need, in_words, needs_of
from instep.etcd._pool import Pool
from instep.etcd._ranges import read_newest, read_pages
from instep.etcd._status import alarm_names, read_statuses
from instep.etcd._tls import Tls, TlsFiles
from instep.etcd._transport import Transport
from instep.etcd._types import KeyValue, Lease, Listing, Statistics, Status, TxnResult
from instep.etcd._watch import PROBE_S, SILENCE_S, Watch

_RELISTS = 3
_NAMING_S = 2.0


class Client:
    """An etcd v3 client for one event loop; connects when first used.

    Every call ends within `timeout_s` (seconds, the call's or the client's) with a result or a typed error.
    Reads are repeated at other endpoints within that time. Writes are repeated only if they certainly did not
    reach etcd; otherwise they end with EtcdUnavailable and `applied_unknown`.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        if not timeout_s > 0:
            raise SettingsError(f"A timeout of {timeout_s:g} s leaves no time for any answer: give more than 0 s.")
        parsed = parse_endpoints(endpoints, tls=tls is not None)
        if credentials is not None:
            credentials.read_password()
        pool = Pool(parsed, None if tls is None else TlsFiles(tls))
        self._transport = Transport(pool, Authenticator(credentials), timeout_s)
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._watches_made = 0

    def __repr__(self) -> str:
        user = self._transport.auth.user
        return f"Client({self.endpoint}, {self.link}{f', user={user!r}' if user else ''})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all watches and connections. Running calls fail; later ones raise EtcdError."""
        for watch in list(self._watches):
            await watch.close()
        await self._transport.close()

    @property
    def endpoint(self) -> str:
        """The endpoint that the next call tries first."""
        return str(self._transport.pool.endpoint)

    @property
    def endpoint_index(self) -> int:
        """The index of the current endpoint among those given."""
        return self._transport.pool.current

    @property
    def endpoint_count(self) -> int:
        """The number of endpoints."""
        return len(self._transport.pool)

    @property
    def link(self) -> Literal["connected", "suspended"]:
        """`connected` if the last call or watch was answered; `suspended` before the first answer."""
        return "connected" if self._transport.linked else "suspended"

    @property
    def history(self) -> StoreHistory:
        """The history of etcd as this client has seen it, and how often it was replaced by another one."""
        return self._transport.history

    def statistics(self) -> Statistics:
        """Counts of calls, failures and reconnects. A snapshot."""
        transport = self._transport
        return Statistics(
            calls=transport.calls,
            failures=transport.failures,
            switches=transport.pool.switches,
            reconnects=transport.pool.reconnects,
            reauthentications=transport.auth.renewals,
            watch_resumes=transport.watch_resumes,
            watches=self._watches_made,
        )

    # -- keys ------------------------------------------------------------------------------------------------

    async def get(self, key: str, *, timeout_s: float | None = None) -> KeyValue | None:
        """The key by a linearizable read, or None if it does not exist."""
        request = _wire.RangeRequest(key=encode_key(key))
        reply = await self._read(request, f"get {key}", timeout_s)
        return key_value(reply.kvs[0]) if reply.kvs else None

    async def range(
        self,
        prefix: str,
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        newest_first: bool = False,
        start: str = "",
        page_size: int = 500,
        timeout_s: float | None = None,
    ) -> Listing:
        """All keys under `prefix` at one revision: the current one, or `revision`. At most `limit` keys if above 0,
        beginning with the key `start` if given, which must be under `prefix`.

        It reads pages of `page_size` keys, because a large directory does not fit one message. `newest_first`
        orders by creation, the latest first, in one request, and needs a `limit`. `timeout_s` bounds the whole
        read.
        """
        if newest_first and limit <= 0:
            raise SettingsError("Keys in order of creation are read in one request: give a limit.")
        if page_size <= 0 or limit < 0 or revision < 0:
            raise SettingsError("A page holds at least one key, and neither limit nor revision is below 0.")
        first, end = prefix_range(prefix)
        if start:
            if not start.startswith(prefix):
                raise SettingsError(f"The key {start} to start at is not under {prefix}.")
            first = encode_key(start)
        limit_s = self._transport.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s

        async def read(request: Any) -> Any:
            return await self._read(request, f"list {prefix}", max(0.001, deadline - time.monotonic()))

        if newest_first:
            return await read_newest(read, first, end, revision=revision, limit=limit, keys_only=keys_only)
        for attempt in range(_RELISTS):
            try:
                return await read_pages(
                    read, first, end, revision=revision, limit=limit, keys_only=keys_only, page_size=page_size
                )
            except Compacted:
                # Compacted between two pages. The revision was chosen here, so a newer one is as good.
                if revision or attempt == _RELISTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def put(self, key: str, value: str | bytes, *, lease: int = 0, timeout_s: float | None = None) -> int:
        """Writes one key and returns its revision."""
        data = encode_value(value)
        check_size(len(key) + len(data), f"The value of {key}")
        request = _wire.PutRequest(key=encode_key(key), value=data, lease=lease)
        reply = await self._transport.unary(_wire.PUT, request, f"put {key}", timeout_s=timeout_s, lease=lease)
        return int(reply.header.revision)

    async def delete(self, key: str, *, prefix: bool = False, timeout_s: float | None = None) -> int:
        """Deletes one key, or all that start with it, and returns how many existed."""
        start, end = prefix_range(key) if prefix else (encode_key(key), b"")
        request = _wire.DeleteRangeRequest(key=start, range_end=end)
        reply = await self._transport.unary(_wire.DELETE, request, f"delete {key}", timeout_s=timeout_s)
        return int(reply.deleted)

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        """Executes `then` if all of `compares` hold, else `otherwise`. Never repeated once it was sent."""
        request = txn_request(compares, then, otherwise)
        subject = TxnSubject(compares, then, otherwise)
        try:
            reply = await self._transport.unary(_wire.TXN, request, subject, timeout_s=timeout_s)
        except EtcdDenied as error:
            if error.code != "PERMISSION_DENIED":
                raise
            raise await self._named(error, needs_of(compares, then, otherwise)) from error
        return txn_result(reply)

    async def _named(self, error: EtcdDenied, needs: Sequence[Need]) -> EtcdDenied:
        """The refusal with the missing keys and permissions, as far as etcd names them in 2 s."""
        deadline = time.monotonic() + _NAMING_S
        missing: list[Need] = []
        for need in needs[:MAX_ASKED]:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or len(missing) == MAX_NAMED:
                break
            try:
                await self._transport.unary(_wire.TXN, need.probe(), str(need), timeout_s=left_s, repeatable=True)
            except EtcdDenied:
                missing.append(need)
            except EtcdError:
                break
        if not missing:
            return error
        return not_permitted(str(self._transport.pool.endpoint), in_words(missing), self._transport.auth.user)

    def watch(
        self,
        key: str,
        *,
        prefix: bool = True,
        start_revision: int = 0,
        probe_s: float = PROBE_S,
        silence_s: float = SILENCE_S,
        listed: Sequence[KeyValue] | None = None,
        history_changes: int | None = None,
    ) -> Watch:
        """Watches the keys under `key` (or `key` alone) from `start_revision` on, 0 meaning now; see Watch.

        `listed` are the keys found just before `start_revision`, and `history_changes` is the count at that time: the
        watch then follows that history, or ends with HistoryChanged.
        """
        if probe_s <= 0 or silence_s <= 0 or start_revision < 0:
            raise SettingsError(
                "A watch needs a probe interval and a silence limit above 0 s, and no revision below 0."
            )
        key_range = prefix_range(key) if prefix else (encode_key(key), b"")
        watch = Watch(
            self._transport,
            key_range,
            start_revision,
            probe_s=probe_s,
            silence_s=silence_s,
            anchor=max(listed, key=lambda item: item.mod_revision) if listed else None,
            needs_anchor=listed is not None,
            history_changes=history_changes,
        )
        self._watches.add(watch)
        self._watches_made += 1
        return watch

    # -- leases ----------------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> Lease:
        """Grants a lease. If the reply is lost, the lease expires unused after its TTL."""
        request = _wire.LeaseGrantRequest(TTL=ttl_s)
        reply = await self._transport.unary(
            _wire.LEASE_GRANT, request, f"grant a lease of {ttl_s} s", timeout_s=timeout_s, repeatable=True
        )
        return Lease(reply.ID, reply.TTL)

    async def lease_revoke(self, lease_id: int, *, timeout_s: float | None = None) -> None:
        """Ends the lease and deletes its keys. A lease that is gone already is no error."""
        request = _wire.LeaseRevokeRequest(ID=lease_id)
        try:
            await self._transport.unary(
                _wire.LEASE_REVOKE,
                request,
                f"revoke the lease {lease_id:x}",
                timeout_s=timeout_s,
                repeatable=True,
                lease=lease_id,
            )
        except LeaseLost:
            return

    async def lease_unrenewed(self, lease_id: int, *, timeout_s: float | None = None) -> tuple[int, int]:
        """Seconds since the last renewal of the lease, by etcd's leader, and the seconds that it was granted for;
        (0, 0) if it is gone."""
        request = _wire.LeaseTimeToLiveRequest(ID=lease_id)
        subject = f"read the lease {lease_id:x}"
        reply = await self._transport.unary(
            _wire.LEASE_TIME_TO_LIVE, request, subject, timeout_s=timeout_s, repeatable=True
        )
        if reply.TTL < 0:
            return 0, 0
        return max(0, reply.grantedTTL - reply.TTL - 1), reply.grantedTTL  # TTL is rounded down

    async def keepalive(
        self, lease_id: int, *, timeout_s: float | None = None, endpoint_index: int | None = None
    ) -> int:
        """Renews the lease once and returns for how many seconds. Raises LeaseLost."""
        request = _wire.LeaseKeepAliveRequest(ID=lease_id)
        subject = f"keep the lease {lease_id:x} alive"
        if endpoint_index is None:
            reply = await self._transport.unary(
                _wire.LEASE_KEEPALIVE, request, subject, timeout_s=timeout_s, repeatable=True, lease=lease_id
            )
        else:
            limit_s = self._transport.timeout_s if timeout_s is None else timeout_s
            reply = await self._transport.once(
                endpoint_index, _wire.LEASE_KEEPALIVE, request, subject, timeout_s=limit_s, lease=lease_id
            )
        if reply.TTL <= 0:
            raise LeaseLost(f"The lease {lease_id:x} is gone: it expired or was revoked.", lease_id=lease_id)
        return int(reply.TTL)

    # -- the cluster -----------------------------------------------------------------------------------------

    async def authenticate(self, *, timeout_s: float | None = None) -> None:
        """Requests a new token with the current password. Does nothing without credentials."""
        await self._transport.authenticate(timeout_s)

    async def status(self, *, timeout_s: float | None = None) -> tuple[Status, ...]:
        """The status of each endpoint, requested concurrently; one that does not answer has an `error`."""
        return await read_statuses(self._transport, timeout_s)

    async def alarms(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """The cluster's alarms (NOSPACE, CORRUPT), as the current endpoint knows them."""
        reply = await self._transport.unary(
            _wire.STATUS, _wire.StatusRequest(), "read the alarms", timeout_s=timeout_s, repeatable=True
        )
        return alarm_names(reply.errors)

    async def compact(self, revision: int, *, timeout_s: float | None = None) -> None:
        """Compacts the history below `revision`."""
        request = _wire.CompactionRequest(revision=revision)
        await self._transport.unary(_wire.COMPACT, request, f"compact at {revision}", timeout_s=timeout_s)

    async def _read(self, request: Any, subject: str, timeout_s: float | None) -> Any:
        return await self._transport.unary(_wire.RANGE, request, subject, timeout_s=timeout_s, repeatable=True)
