"""Calls: to the current endpoint, then to the next, repeated if that is safe, within a time limit."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from instep.errors import EtcdDenied, EtcdError, SettingsError
from instep.etcd import _failures, _wire
from instep.etcd._auth import Authenticator, Metadata
from instep.etcd._connection import Connection
from instep.etcd._diagnosis import diagnose
from instep.etcd._failures import Kind
from instep.etcd._grpc import aio, grpc, rpc_error
from instep.etcd._history import StoreHistory
from instep.etcd._pool import Pool
from instep.etcd._unanswered import Unanswered

_PAUSE_S = 0.1
_MOST_RENEWALS = 2


@dataclass(slots=True)
class _Trial:
    """One call and its attempts so far."""

    subject: object
    timeout_s: float
    deadline: float
    repeatable: bool
    lease: int
    index: int | None = None
    """The only endpoint to try; None tries one after the other."""
    reasons: dict[str, str] = field(default_factory=dict)
    tried: int = 0
    renewals: int = 0
    generation: int = 0
    sent: bool = False
    denial: str | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.timeout_s):  # with it no deadline ever passes
            raise SettingsError("A timeout that is not a number leaves no time for any answer: give more than 0 s.")

    @property
    def left_s(self) -> float:
        return max(0.001, self.deadline - time.monotonic())

    def share_s(self, endpoints: int) -> float:
        """The time for the next attempt: half of the remaining time while an endpoint is untried."""
        return self.left_s if self.tried % endpoints == endpoints - 1 else self.left_s / 2


class Transport:
    """Makes the calls of one client. `linked`: whether the last result from any endpoint was an answer."""

    def __init__(self, pool: Pool, auth: Authenticator, timeout_s: float) -> None:
        self.pool = pool
        self.auth = auth
        self.history = StoreHistory()
        self._unanswered = Unanswered(auth)
        self.timeout_s = timeout_s
        self.linked = False
        self.calls = 0
        self.failures = 0
        self.watch_resumes = 0

    def __repr__(self) -> str:
        return f"Transport({self.pool!r}, linked={self.linked}, calls={self.calls}, failures={self.failures})"

    async def unary(
        self,
        method: _wire.Method,
        request: Any,
        subject: object,
        *,
        timeout_s: float | None = None,
        repeatable: bool = False,
        lease: int = 0,
    ) -> Any:
        """The reply within `timeout_s`, or a typed error that names the `subject`, such as "put a/b".

        A call that is not `repeatable` is repeated only if it certainly did not reach etcd.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        trial = _Trial(subject, limit, time.monotonic() + limit, repeatable, lease)
        self.calls += 1
        return await self._repeat(trial, lambda connection: self._attempt(connection, method, request, trial))

    async def once(
        self,
        index: int,
        method: _wire.Method,
        request: Any,
        subject: object,
        *,
        timeout_s: float,
        lease: int = 0,
    ) -> Any:
        """Makes one attempt at an endpoint of the caller's choice, repeated only to renew a token."""
        trial = _Trial(subject, timeout_s, time.monotonic() + timeout_s, True, lease, index)
        self.calls += 1
        return await self._repeat(
            trial, lambda connection: self._send(connection, method, request, trial, trial.left_s)
        )

    async def authenticate(self, timeout_s: float | None) -> None:
        """Gets a new token from any endpoint."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        trial = _Trial("authenticate", limit, time.monotonic() + limit, True, 0)
        await self._repeat(
            trial,
            lambda connection: self.auth.renew(connection, self.auth.generation, trial.share_s(len(self.pool))),
        )

    async def _repeat(self, trial: _Trial, attempt: Callable[[Connection], Awaitable[Any]]) -> Any:
        """The result of the first attempt that succeeds, or the final error of the call."""
        while True:
            with self.pool.connection(trial.index) as connection:
                try:
                    return await attempt(connection)
                except aio.AioRpcError as error:
                    await self._recover(connection, error, trial)
                except (aio.UsageError, asyncio.CancelledError) as error:
                    self.pool.raise_if_closed(error)
                    raise

    async def close(self) -> None:
        """Closes every connection; running calls fail."""
        await self._unanswered.close()
        await self.pool.close()

    def stream_metadata(self) -> Metadata:
        """The metadata that makes etcd end a stream when its member loses the quorum."""
        return (*(self.auth.metadata or ()), ("hasleader", "true"))

    async def _attempt(self, connection: Connection, method: _wire.Method, request: Any, trial: _Trial) -> Any:
        trial.sent = False
        share_s = trial.share_s(len(self.pool))
        if not trial.repeatable and not await self._may_send_write(connection, share_s):
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer before the request was sent")
        return await self._send(connection, method, request, trial, share_s if trial.repeatable else trial.left_s)

    async def _may_send_write(self, connection: Connection, limit_s: float) -> bool:
        """Whether a write may be sent on this connection. A frozen server loses it, and its fate is unknown."""
        if connection.fresh:
            return True
        if connection.proven and len(self.pool) == 1:
            return True  # there is no other endpoint
        began = time.monotonic()
        if not await connection.ready(limit_s):
            return False
        if len(self.pool) == 1:
            return True
        left_s = max(0.001, limit_s - (time.monotonic() - began))
        return await connection.answers(self.auth.metadata, left_s)

    async def _send(
        self, connection: Connection, method: _wire.Method, request: Any, trial: _Trial, timeout_s: float
    ) -> Any:
        auth = self.auth
        if auth.needed:
            began = time.monotonic()
            await auth.renew(connection, 0, timeout_s)
            timeout_s = max(0.001, timeout_s - (time.monotonic() - began))
        trial.generation = auth.generation
        metadata = self.stream_metadata() if method is _wire.LEASE_KEEPALIVE else auth.metadata
        trial.sent, sent = True, self.history.now()
        call = connection.calls[method](request, timeout=timeout_s, metadata=metadata)
        reply = await (self._unanswered.answer(call, connection) if method in _wire.WRITES else call)
        connection.heard(reply, led=method is not _wire.STATUS)
        self.linked = True
        if method is not _wire.AUTHENTICATE:
            self.history.heard(reply.header, sent, linearizable=method in _wire.LINEARIZABLE)
        return reply

    async def _recover(self, connection: Connection, error: aio.AioRpcError, trial: _Trial) -> None:
        """Prepares the next attempt, or raises the final error of the call."""
        kind = _failures.kind_of(error)
        if kind is Kind.TOKEN and await self._renew(connection, trial):
            return
        if kind not in (Kind.UNSENT, Kind.INTERRUPTED, Kind.SILENT):
            raise self.refusal(error, connection, trial.subject, trial.lease) from error
        self._note_failure(connection, error, kind, trial)
        if trial.index is not None:
            raise self._unavailable(error, trial, unknown=False) from error
        if trial.sent and kind is not Kind.UNSENT and not trial.repeatable:
            raise self._unavailable(error, trial, unknown=True) from error
        if kind is Kind.UNSENT:
            trial.denial = await self.denial(connection, error, trial.left_s) or trial.denial
        if time.monotonic() + _PAUSE_S >= trial.deadline:
            raise self._unavailable(error, trial, unknown=False) from error
        if trial.tried % len(self.pool) == 0:
            if trial.denial is not None:
                raise EtcdDenied(trial.denial, code=_failures.code_of(error)) from error
            await asyncio.sleep(_PAUSE_S * random.uniform(0.5, 1.0))

    def _note_failure(self, connection: Connection, error: aio.AioRpcError, kind: Kind, trial: _Trial) -> None:
        place = str(connection.endpoint)
        reason = _failures.short_reason(_failures.code_of(error), _failures.details_of(error))
        if kind is Kind.SILENT and not connection.connected:
            named = "its name does not resolve in time, or " if connection.endpoint.is_named else ""
            reason = trial.reasons.get(place, f"no connection: {named}nothing answers there")
        trial.reasons[place] = reason
        trial.tried += 1
        self.failed(connection, suspect=kind is Kind.SILENT, error=error)

    def failed(self, connection: Connection, *, suspect: bool, error: aio.AioRpcError | None = None) -> None:
        self.failures += 1
        self.linked = False
        unreachable = error is not None and _failures.is_unreachable(_failures.details_of(error))
        self.pool.failed(connection, suspect=suspect, unreachable=unreachable)

    async def denial(self, connection: Connection, error: aio.AioRpcError, limit_s: float) -> str | None:
        """Why this endpoint permanently refuses the client, if that is found within `limit_s`."""
        if not _failures.may_need_diagnosis(_failures.details_of(error)):
            return None
        try:
            async with asyncio.timeout(limit_s):
                return await diagnose(connection.endpoint, self.pool.files)
        except TimeoutError:
            return None

    async def _renew(self, connection: Connection, trial: _Trial) -> bool:
        trial.renewals += 1
        if self.auth.user is None or trial.renewals > _MOST_RENEWALS:
            return False
        try:
            await self.auth.renew(connection, trial.generation, trial.left_s)
        except aio.AioRpcError as error:
            kind = _failures.kind_of(error)
            if kind in (Kind.UNSENT, Kind.INTERRUPTED, Kind.SILENT):
                # The call itself was refused unapplied: it may be repeated elsewhere.
                self._note_failure(connection, error, kind, trial)
                if time.monotonic() < trial.deadline:
                    return True
                raise self._unavailable(error, trial, unknown=False) from error
            raise self.refusal(error, connection, trial.subject, trial.lease) from error
        return True

    def refusal(self, error: aio.AioRpcError, connection: Connection, subject: object, lease: int = 0) -> EtcdError:
        self.failures += 1
        return _failures.refusal(
            _failures.code_of(error),
            _failures.details_of(error),
            endpoint=str(connection.endpoint),
            subject=subject,
            user=self.auth.user,
            lease=lease,
        )

    def _unavailable(self, error: aio.AioRpcError, trial: _Trial, *, unknown: bool) -> EtcdError:
        return _failures.unavailable(
            trial.reasons,
            timeout_s=trial.timeout_s,
            applied_unknown=unknown,
            code=_failures.code_of(error),
        )
