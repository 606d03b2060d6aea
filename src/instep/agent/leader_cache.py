"""Everything that a leader's decision reads, kept up to date: the run's state, and the reports that only it watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final, Generic, TypeVar

from instep.agent.state import RunState
from instep.etcd import Client, Event, KeyValue
from instep.names import is_hyperparameter_name
from instep.protocol import membership
from instep.protocol.attempts import ReportedFailure
from instep.protocol.commands import PendingCommand
from instep.protocol.desired import DesiredValue, considered
from instep.protocol.keys import Keys, last_part
from instep.protocol.membership import RegisteredWorker
from instep.protocol.records import (
    Ack,
    Arrivals,
    Attempts,
    Change,
    Held,
    Left,
    Manifest,
    Member,
    Pointer,
    RankFailure,
    Receipt,
    Verified,
    WorkerId,
)
from instep.protocol.schema import Schema
from instep.protocol.situation import ProgressDetector, Situation, TrainingProgress
from instep.protocol.transactions import SeenRevisions
from instep.recipes.informer import Informer

T = TypeVar("T")

MAX_TEXT: Final = 1000
"""How many characters of an author, and of a reason, are read."""
MAX_NAMES: Final = 1000
SCHEMAS_KEPT: Final = 20
"""Unused schemas that are kept: each edit of a script leaves one."""


class Decoded(Generic[T]):
    """Decodes each item once, however often it is read: an operator may write thousands of them."""

    def __init__(self, decode: Callable[[KeyValue], T]) -> None:
        self._decode = decode
        self._known: dict[tuple[str, int], T] = {}

    def read(self, items: Iterable[KeyValue]) -> list[T]:
        known = self._known
        self._known = {
            place: known[place] if place in known else self._decode(item)
            for item in items
            for place in [(item.key, item.mod_revision)]
        }
        return list(self._known.values())


def _read_desired(prefix: str, item: KeyValue) -> DesiredValue | None:
    name = item.key.removeprefix(prefix)
    return DesiredValue(name, item.text, item.mod_revision) if is_hyperparameter_name(name) else None


def _read_change(item: KeyValue) -> Change:
    """Shortens long texts, because they are copied into the plan. An unreadable record has no author and is deleted."""
    change = Change.decode_or_none(item.value) or Change(id="", names=())
    author, reason = (text[:MAX_TEXT] if text is not None else None for text in (change.author, change.reason))
    return Change(id=last_part(item.key), names=change.names[:MAX_NAMES], author=author, reason=reason)


class LeaderCache:
    """Limit: each informer may lag behind etcd, so the transaction of a decision compares what it was made from."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        state: RunState,
        on_change: Callable[[], None],
        *,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def changed(events: tuple[Event, ...]) -> None:
            on_change()

        self._keys = keys
        self._state = state
        self._grace_s = grace_s
        self._clock = clock
        self._mismatched_since: dict[WorkerId, float] = {}
        self._plan_since: tuple[int, float] = (0, 0.0)
        self._progress_detector = ProgressDetector()
        self._schema: tuple[bytes | None, Schema] = (None, Schema(None))
        self._config = Decoded(partial(_read_desired, keys.config))
        self._signed = Decoded(_read_change)
        self._commands = Decoded(lambda item: PendingCommand.read(last_part(item.key), item.mod_revision, item.value))
        self._declared = Decoded(lambda item: Schema.decode(item.value))
        self.desires = Informer(client, keys.desires, changed)
        self._members = Informer(client, keys.members, changed, decode=Member.decode_or_none)
        self._acks = Informer(client, keys.acks, changed, decode=Ack.decode_or_none)
        self._receipts = Informer(client, keys.receipts, changed, decode=Receipt.decode_or_none)
        self._left = Informer(client, keys.left, changed, decode=Left.decode_or_none)
        self._schemas = Informer(client, keys.schemas, changed)
        self._verified = Informer(client, keys.verified, changed, decode=Verified.decode_or_none)
        self._failures = Informer(client, keys.failures, changed, decode=RankFailure.decode_or_none)
        self._arrivals = Informer(client, keys.arrivals, changed, decode=Arrivals.decode_or_none)
        self._heads = Informer(client, keys.heads, changed, decode=Held.decode_or_none)
        self._attempts = Informer(client, keys.attempts, changed, decode=Attempts.decode_or_none)

    def __repr__(self) -> str:
        return f"LeaderCache({self._state!r}, {self._members!r})"

    @property
    def informers(self) -> tuple[Informer, ...]:
        flowing_up = (self._members, self._acks, self._receipts, self._left, self._schemas, self._verified)
        return (self.desires, *flowing_up, self._failures, self._arrivals, self._heads, self._attempts)

    def follow(self) -> list[Coroutine[Any, Any, None]]:
        """The coroutines that keep it up to date until cancelled. The caller runs all of them, and ends when one
        ends."""
        return [informer.run() for informer in self.informers]

    async def wait_listed(self) -> None:
        for informer in self.informers:
            await informer.wait_listed()

    def seen(self) -> SeenRevisions:
        """The revisions of the records that a decision reads now."""
        attempts = self._attempts.get(self._keys.attempts)
        counted_at = attempts.mod_revision if attempts is not None else 0
        state = self._state
        return SeenRevisions(
            view=state.view_revision,
            agreed=state.agreed_revision,
            pointer=self._pointer()[1],
            attempts=counted_at,
            resume=state.resume_revision,
            epoch=state.epoch_revision,
        )

    def _acked(self) -> frozenset[str]:
        """Nodes with an ack of the newest plan, and not of an earlier plan with the same number."""
        plan, since = self._state.plan, self._state.plan_revision
        if plan is None:
            return frozenset()
        prefix, digests = f"{self._keys.acks}{plan.number}/", ("", plan.digest)
        records = ((item, self._acks.records.get(item.key)) for item in self._acks.under(prefix))
        return frozenset(
            last_part(item.key)
            for item, ack in records
            if item.create_revision > since and ack is not None and ack.digest in digests
        )

    def situation(self, progress: TrainingProgress) -> Situation:
        state, keys = self._state, self._keys
        number = state.plan.number if state.plan is not None else 0
        registered = self._registered()
        pointer = self._pointer()
        verified = {last_part(key): record for key, record in self._verified.records.items()}
        return Situation(
            view=state.view,
            agreed=state.agreed,
            registered=registered,
            left={last_part(key): left for key, left in self._left.records.items()},
            plan=state.plan,
            decision=state.decision,
            plan_age_s=self._age_of_plan(number),
            open=state.informer.get(keys.open_mark(number)) is not None,
            acked=self._acked(),
            receipts={
                last_part(key): receipt
                for key, receipt in self._receipts.records.items()
                if key.startswith(keys.receipts_of(number))
                and self._receipts.keys[key].create_revision > state.plan_revision
            },
            desired=self._desired(),
            changes=self._changes(),
            pending_commands=(pending_commands := self._pending_commands()),
            declined=state.declined,
            manifests=self._manifests() if pending_commands or verified or self._goes_back() else {},
            pointer=pointer[0],
            resume=state.resume,
            resume_is_newer=state.resume_revision > pointer[1],
            verified=verified,
            rejected=state.rejected,
            schemas={last_part(item.key): item.text for item in self._schemas.keys.values()},
            schema=self._schema_of_view(),
            forming=state.forming,
            epoch=state.epoch,
            epoch_revision=state.epoch_revision,
            entered=state.entered.view if state.entered is not None else 0,
            held={last_part(key): held for key, held in self._heads.records.items()},
            leader=state.leader,
            long_mismatched=self._long_mismatched(registered),
            progress=progress,
            run=keys.run,
            attempts=self._attempts.records.get(keys.attempts, Attempts()),
            reports=self._reports(),
            has_progressed=self._progress_detector.progressed(
                state.view.number if state.view is not None else 0, progress.step
            ),
            released=state.released,
            arrivals={last_part(key): arrivals for key, arrivals in self._arrivals.records.items()},
            outdated_refusals=self._outdated_refusals(),
            outdated_schemas=self._outdated_schemas(),
        )

    def _reports(self) -> tuple[ReportedFailure, ...]:
        keys = self._failures.keys
        return tuple(
            ReportedFailure(failure, keys[key].create_revision) for key, failure in self._failures.records.items()
        )

    def _outdated_refusals(self) -> tuple[WorkerId, ...]:
        """Refusals whose workers are not registered any more."""
        if not self._state.refused:
            return ()
        here = {member.worker for member in self._members.records.values()}
        records = {record.worker: record for record in self._state.refused.values()}
        return tuple(worker for worker, record in records.items() if here.isdisjoint(record.workers()))

    def _outdated_schemas(self) -> tuple[str, ...]:
        """Schemas that neither a worker nor the view uses, except for the newest."""
        items = self._schemas.keys.values()
        if len(items) <= SCHEMAS_KEPT:
            return ()
        used = {member.schema_digest for member in self._members.records.values()}
        used |= {self._state.view.schema_digest} if self._state.view is not None else set()
        by_age = sorted(items, key=lambda item: item.mod_revision)
        return tuple(name for item in by_age[:-SCHEMAS_KEPT] if (name := last_part(item.key)) not in used)

    def _registered(self) -> tuple[RegisteredWorker, ...]:
        refused, keys = self._state.refused, self._members.keys
        registered = (
            RegisteredWorker(member, keys[key].create_revision)
            for key, member in self._members.records.items()
            if member.worker not in refused and key == self._keys.member(member.rank, member.incarnation)
        )
        return membership.without_stale(self._state.view, registered)

    def _desired(self) -> dict[str, DesiredValue]:
        found = self._config.read(self.desires.under(self._keys.config))
        agreed = self._state.agreed.values if self._state.agreed is not None else {}
        schemas = self._declared.read(self._schemas.keys.values())
        known = set(agreed).union(*(schema.names for schema in schemas))
        return considered((item for item in found if item is not None), known)

    def _changes(self) -> dict[int, Change]:
        items = self.desires.under(self._keys.changes)
        return {item.mod_revision: change for item, change in zip(items, self._signed.read(items), strict=True)}

    def _pending_commands(self) -> tuple[PendingCommand, ...]:
        return tuple(self._commands.read(self.desires.under(self._keys.commands)))

    def _pointer(self) -> tuple[Pointer | None, int]:
        item = self.desires.get(self._keys.latest)
        return (Pointer.decode_or_none(item.value), item.mod_revision) if item is not None else (None, 0)

    def _manifests(self) -> dict[str, Manifest]:
        keys = self._keys
        found = ((item.key, Manifest.decode_or_none(item.value)) for item in self.desires.under(keys.checkpoints))
        return {
            manifest.id: manifest
            for key, manifest in found
            if manifest is not None and key == keys.checkpoint(manifest.id)
        }

    def _goes_back(self) -> bool:
        plan = self._state.plan
        return plan is not None and plan.checkpoint is not None and self._state.decision is None

    def _age_of_plan(self, number: int) -> float:
        now = self._clock()
        if self._plan_since[0] != number:
            self._plan_since = (number, now)
        return now - self._plan_since[1]

    def _schema_of_view(self) -> Schema:
        view = self._state.view
        item = self._schemas.get(self._keys.schema_of(view.schema_digest)) if view is not None else None
        text = item.value if item is not None else None
        if text != self._schema[0]:
            self._schema = (text, Schema.decode(text))
        return self._schema[1]

    def _long_mismatched(self, registered: tuple[RegisteredWorker, ...]) -> frozenset[WorkerId]:
        now = self._clock()
        found = membership.mismatched(self._state.view, registered)
        self._mismatched_since = {worker: self._mismatched_since.get(worker, now) for worker in found}
        return frozenset(worker for worker, since in self._mismatched_since.items() if now - since >= self._grace_s)
