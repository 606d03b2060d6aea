"""Who has led the run, and how each came to follow the one before."""

from __future__ import annotations

from dataclasses import dataclass

from instep.control._facts import Facts
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import CAME_FIRST, Term
from instep.protocol.transactions import TERMS_KEPT
from instep.text import one_line


@dataclass(frozen=True, slots=True)
class Leading(Facts):
    """One leadership, from `since` (wall clock of the leader's host) to the next one's.

    `former_rank` and `former_host` led before it, None where the history does not tell; `why` is how that ended, None
    where it is not known.
    """

    term: int
    rank: int
    node: str
    host: str
    token: int
    since: str | None
    former_rank: int | None
    former_host: str | None
    why: str | None

    @property
    def at_start(self) -> bool:
        """Whether it only followed another rank of its node while the ranks of a run came together."""
        return self.why == CAME_FIRST


async def leaders_of(client: Client, keys: Keys, limit: int) -> tuple[Leading, ...]:
    """The newest `limit` leaders, the newest first; etcd keeps the last 100."""
    listing = await client.range(keys.terms, newest_first=True, limit=min(limit, TERMS_KEPT) + 1)
    terms = {term.term: term for item in listing.kvs if (term := Term.decode_or_none(item.value)) is not None}
    newest = sorted(terms, reverse=True)[:limit]
    return tuple(_leading(terms[number], terms.get(number - 1)) for number in newest)


def _leading(term: Term, former: Term | None) -> Leading:
    return Leading(
        term=term.term,
        rank=term.rank,
        node=term.node,
        host=term.host or term.node,
        token=term.token,
        since=term.at,
        former_rank=former.rank if former else None,
        former_host=(former.host or former.node) if former else None,
        why=one_line(term.why) if term.why else None,
    )
