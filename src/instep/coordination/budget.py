"""How often something may be tried again: a count by cause in etcd, which survives those who count."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from instep.coordination.naming import as_prefix, check_name, check_timeout, is_whole
from instep.coordination.waiting import RETRY_S, because
from instep.errors import BudgetSpent, ConfigError, EtcdFull, EtcdUnavailable, InstepError, SettingsError
from instep.etcd import Client, Compare, Op

log = logging.getLogger("instep")

# All of an account is one value, and etcd takes 1.5 MiB: each entry has two words, and JSON doubles a quote.
MAX_LIMIT: Final = 200
MAX_CAUSES: Final = 16
MAX_WORD_BYTES: Final = 64
"""Of a cause and of an attempt's id, in UTF-8."""
MAX_REASON: Final = 1000
HISTORY: Final = 200
CONFLICT_PAUSE_S: Final = 0.02
TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Spent:
    """`attempt` is the id given to `spend`."""

    cause: str
    attempt: str


@dataclass(frozen=True, slots=True)
class Reset:
    """Everything spent before this counts no more. `spent` is how much that was, by cause; `token` tells two resets of
    the same words apart."""

    who: str
    why: str
    spent: Mapping[str, int]
    token: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """What the key holds. `spent` counts; `history` is for people, oldest first, and bounded."""

    spent: tuple[Spent, ...] = ()
    history: tuple[Spent | Reset, ...] = ()

    def count(self, cause: str) -> int:
        return sum(item.cause == cause for item in self.spent)

    def by_cause(self) -> dict[str, int]:
        return {cause: self.count(cause) for cause in dict.fromkeys(item.cause for item in self.spent)}

    def encode(self) -> str:
        spent = [[item.cause, item.attempt] for item in self.spent]
        history = [_encode(item) for item in self.history]
        return json.dumps({"spent": spent, "history": history}, ensure_ascii=False)

    @classmethod
    def decode(cls, value: bytes) -> Account:
        """Raises ValueError, TypeError, KeyError or AttributeError for what is no account."""
        found = json.loads(value)
        spent = tuple(Spent(str(cause), str(attempt)) for cause, attempt in found["spent"])
        return cls(spent, tuple(_decode(item) for item in found["history"]))


def _encode(item: Spent | Reset) -> dict[str, Any]:
    if isinstance(item, Spent):
        return {"cause": item.cause, "attempt": item.attempt}
    return {"who": item.who, "why": item.why, "spent": dict(item.spent), "token": item.token}


def _decode(item: dict[str, Any]) -> Spent | Reset:
    if "cause" in item:
        return Spent(str(item["cause"]), str(item["attempt"]))
    spent = {str(cause): int(number) for cause, number in item["spent"].items()}
    return Reset(str(item["who"]), str(item["why"]), spent, str(item["token"]))


def after_spending(account: Account, one: Spent, limit: int) -> Account | None:
    """The account with one more attempt, the same account if it is in already, or None when nothing is left."""
    if one in account.spent:
        return account
    if account.count(one.cause) >= limit:
        return None
    return Account((*account.spent, one), (*account.history, one)[-HISTORY:])


def after_reset(account: Account, who: str, why: str, token: str) -> Account:
    """The account begun anew, or the same account if this reset is in already."""
    if any(isinstance(item, Reset) and item.token == token for item in account.history):
        return account
    reset = Reset(who, why, account.by_cause(), token)
    return Account((), (*account.history, reset)[-HISTORY:])


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatistics:
    """Counts since this object was made. `repeated`: attempts that were counted before; `conflicts`: txns that another
    spender was faster than."""

    spent: int
    repeated: int
    refused: int
    conflicts: int


class RetryBudget:
    """The budget under `prefix`: each cause has `limit` attempts (one number for all, or one for each).

    Promise: since the last reset no cause is counted more than its limit, whoever spends at the same time; an attempt
    id is counted once, also when it is given again after a lost reply or a restart; each call ends within `timeout_s`
    seconds. Limit: after a reset an id counts anew. What to do when nothing is left is the caller's. The history keeps
    the last 200 entries, and no times: hosts' clocks are not to be compared. At most 16 causes with 200 attempts each;
    a cause and an id have at most 64 bytes.
    """

    def __init__(
        self, client: Client, prefix: str, limit: int | Mapping[str, int], *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._client = client
        self._key = f"{as_prefix(prefix)}budget"
        self._limit = _check_limit(limit)
        self._timeout_s = check_timeout(timeout_s)
        self._trouble: InstepError | None = None
        """What was ridden out last; None once etcd has done what was asked since."""
        self._spent = self._repeated = self._refused = self._conflicts = 0

    def __repr__(self) -> str:
        return f"RetryBudget({self._key}, limit={self._limit})"

    def statistics(self) -> BudgetStatistics:
        return BudgetStatistics(
            spent=self._spent, repeated=self._repeated, refused=self._refused, conflicts=self._conflicts
        )

    async def spend(self, cause: str, attempt_id: str) -> int:
        """Counts one attempt; returns how many are left. Raises BudgetSpent when there was none, and EtcdUnavailable
        with the reason when etcd did not say in time: then give the same `attempt_id` again."""
        one, limit = Spent(_check_cause(cause), _check_id(attempt_id)), self._limit_of(cause)
        async with self._bounded():
            while True:
                account, revision = await self._read()
                after = after_spending(account, one, limit)
                if after is None:
                    self._refused += 1
                    raise BudgetSpent(f"All {limit} attempts for {cause!r} are spent.", cause=cause, limit=limit)
                if after is account:
                    self._repeated += 1
                    return max(0, limit - account.count(cause))  # the limit may have been lowered since
                if len(after.by_cause()) > MAX_CAUSES:
                    raise SettingsError(f"A budget has at most {MAX_CAUSES} causes: {cause!r} would be one more.")
                if await self._written(after, revision):
                    self._spent += 1
                    return limit - after.count(cause)

    async def remaining(self, cause: str) -> int:
        """How many attempts are left for `cause`; others may spend them."""
        async with self._bounded():
            return max(0, self._limit_of(cause) - (await self._read())[0].count(cause))

    async def history(self) -> tuple[Spent | Reset, ...]:
        """What was spent and reset, oldest first: the last 200 entries."""
        async with self._bounded():
            return (await self._read())[0].history

    async def reset(self, who: str, why: str) -> None:
        """Gives every cause all its attempts back, and notes who did it and why."""
        if not who.strip() or not why.strip() or len(who) + len(why) > MAX_REASON:
            raise SettingsError(f"A reset needs to say who and why, in at most {MAX_REASON} characters.")
        token = secrets.token_hex(8)
        async with self._bounded():
            while True:
                account, revision = await self._read()
                after = after_reset(account, who, why, token)
                if after is account or await self._written(after, revision):
                    return

    # -- inside -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """`asyncio.timeout` with our own error, which says what was in the way."""
        self._trouble = None
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            raise EtcdUnavailable(
                f"etcd did not settle {self._key} in {self._timeout_s:g} s: call again with the same arguments."
                f"{because(self._trouble)}",
                applied_unknown=True,
            ) from self._trouble

    def _limit_of(self, cause: str) -> int:
        if isinstance(self._limit, int):
            return self._limit
        if cause not in self._limit:
            raise SettingsError(f"{cause!r} is none of the causes {', '.join(self._limit)}.")
        return self._limit[cause]

    async def _read(self) -> tuple[Account, int]:
        """Never an empty account for one that cannot be read: that would give its attempts back."""
        while True:
            try:
                found = await self._client.get(self._key)
            except EtcdUnavailable as error:
                self._trouble = error
                await asyncio.sleep(RETRY_S)
                continue
            if found is None:
                return Account(), 0
            try:
                return Account.decode(found.value), found.mod_revision
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ConfigError(f"{self._key} holds no budget ({error}): delete it to begin anew.") from None

    async def _written(self, account: Account, revision: int) -> bool:
        """False: look again, for another was faster, or whether it was written is not known."""
        same = Compare.mod_revision(self._key, "==", revision)
        try:
            if (await self._client.txn([same], [Op.put(self._key, account.encode())])).succeeded:
                return True
        except (EtcdUnavailable, EtcdFull) as error:
            log.debug("%s waits for etcd: %s", self._key, error)
            self._trouble = error
            await asyncio.sleep(RETRY_S)
            return False
        self._trouble = None
        self._conflicts += 1
        await asyncio.sleep(random.uniform(0, CONFLICT_PAUSE_S))  # or the same ones meet again
        return False


def _check_limit(limit: int | Mapping[str, int]) -> int | dict[str, int]:
    """Its own copy, so that what is checked here is what holds."""
    if not isinstance(limit, Mapping):
        return _check_number(limit)
    if not 1 <= len(limit) <= MAX_CAUSES:
        raise SettingsError(f"A budget has 1 to {MAX_CAUSES} causes, not {len(limit)}.")
    return {_check_cause(cause): _check_number(number) for cause, number in limit.items()}


def _check_number(number: int) -> int:
    if not is_whole(number) or not 0 <= number <= MAX_LIMIT:
        raise SettingsError(f"A cause has 0 to {MAX_LIMIT} attempts, a whole number, not {number!r}.")
    return number


def _check_cause(cause: str) -> str:
    if len(check_name(cause, "a cause").encode()) > MAX_WORD_BYTES:
        raise SettingsError(f"{cause!r} is too long for a cause: it has at most {MAX_WORD_BYTES} bytes.")
    return cause


def _check_id(attempt_id: object) -> str:
    text = attempt_id if isinstance(attempt_id, str) and attempt_id.isprintable() else ""
    if not 0 < len(text.encode()) <= MAX_WORD_BYTES:
        raise SettingsError(
            f"{attempt_id!r} cannot be an attempt's id: give printable text of 1 to {MAX_WORD_BYTES} bytes."
        )
    return text
