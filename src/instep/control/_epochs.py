"""When etcd's history went back under a run, or checkpoints were adopted, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from instep.control._facts import Facts
from instep.control._picture import Picture
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Epoch
from instep.protocol.recovery import explain
from instep.protocol.transactions import EPOCHS_KEPT
from instep.text import one_line


@dataclass(frozen=True, slots=True)
class EpochFacts(Facts):
    """One epoch of a run: it begins when etcd's history is found to have gone back, or when checkpoints are adopted.

    While it is not `settled`, changes wait; `problem` says why it cannot be settled. `sentence` says what happened,
    what it means for training, and what to do.
    """

    number: int
    why: str
    at: str | None
    """Wall clock of the host that noticed it."""
    before: int | None
    """The highest revision of etcd that was seen before; None where that is not known."""
    after: int | None
    """The revision at which it was noticed."""
    author: str | None
    """The author of an adoption; None where etcd's history went back."""
    settled: bool
    problem: str | None
    written_back: tuple[int, ...]
    """The plans that etcd had lost and that were written back, as far as etcd still keeps them."""
    sentence: str


def epoch_of(picture: Picture) -> EpochFacts | None:
    """The run's epoch now; None for a run in its first."""
    return _facts(picture.epoch, picture) if picture.epoch is not None else None


async def epochs_of(client: Client, keys: Keys, picture: Picture, limit: int) -> tuple[EpochFacts, ...]:
    """The newest `limit` epochs, the newest first; etcd keeps the last 100."""
    listing = await client.range(keys.epochs, newest_first=True, limit=min(limit, EPOCHS_KEPT))
    epochs = [epoch for item in listing.kvs if (epoch := Epoch.decode_or_none(item.value)) is not None]
    return tuple(_facts(epoch, picture) for epoch in sorted(epochs, key=lambda epoch: epoch.number, reverse=True))


def _facts(epoch: Epoch, picture: Picture) -> EpochFacts:
    restored = {number for number, plan in picture.plans.items() if plan.restored == epoch.number}
    if picture.agreed is not None and picture.agreed.restored == epoch.number:
        restored.add(picture.agreed.plan)
    back = tuple(sorted(restored))
    named = ", ".join(map(str, back))
    told = f"; written back: {'plan' if len(back) == 1 else 'plans'} {named}" if back else ""
    return EpochFacts(
        number=epoch.number,
        why=one_line(epoch.why),
        at=epoch.at,
        before=epoch.before or None,
        after=epoch.after,
        author=epoch.author,
        settled=epoch.settled,
        problem=one_line(epoch.problem) if epoch.problem is not None and not epoch.settled else None,
        written_back=back,
        sentence=explain(epoch) + told,
    )
