"""PyTorch's own tests of rendezvous, as cases of ours; ported_upstream.py says which became what, and which did not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ported_cases import ACCEPTED, CASES, REFUSED, Case, Given, outcome
from torch.distributed.elastic.rendezvous import RendezvousParameters

from instep.errors import SettingsError
from instep.rendezvous.records import Address, Limits, Round, Seat
from instep.torch._rendezvous.options import RendezvousOptions, options_of


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_is_decided(case: Case) -> None:
    assert outcome(case.scene()) == case.outcome


@pytest.mark.parametrize(("given", "expected"), ACCEPTED, ids=[given.name for given, _ in ACCEPTED])
def test_what_is_asked_for_is_what_holds(given: Given, expected: Mapping[str, object]) -> None:
    options = _options(given)
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize("given", REFUSED, ids=[given.name for given in REFUSED])
def test_what_cannot_be_meant_is_refused_in_a_sentence(given: Given) -> None:
    with pytest.raises((SettingsError, ValueError)) as refusal:
        _options(given)
    assert given.says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("nodes", "most_kib"), [(10, 2), (100, 16), (1000, 160), (10_000, 1600)])
def test_a_round_of_many_nodes_stays_small(nodes: int, most_kib: int) -> None:
    """Etcd takes requests of up to 1.5 MiB."""
    seats = tuple(
        Seat(node=f"{rank:012x}", host=f"dummy{rank}.dummy1-dummy1-dummy1-dummy1.com", pid=12345)
        for rank in range(nodes)
    )
    limits = Limits(min_nodes=1, max_nodes=nodes)
    made = Round(epoch=1, number=1, limits=limits, seats=seats, store=Address(host=seats[0].host, port=54321))
    assert len(made.encode()) <= most_kib * 1024
    assert Round.decode(made.encode()) == made


def _options(given: Given) -> RendezvousOptions:
    least, most = given.nnodes
    conf: dict[str, Any] = dict(given.conf)
    params = RendezvousParameters("etcd3", given.endpoint, given.run_id, least, most, **conf)
    return options_of(params, {})
