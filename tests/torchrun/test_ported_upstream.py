"""The table of PyTorch's tests and ours names what there is."""

from __future__ import annotations

import test_ported_backend
import test_ported_cases
import test_ported_handler
from ported_cases import ACCEPTED, CASES, CONTRACTS, REFUSED
from ported_upstream import BECAME

OURS = {
    name
    for module in (test_ported_backend, test_ported_cases, test_ported_handler)
    for name in vars(module)
    if name.startswith("test_")
}
NAMES = {
    "test_what_is_decided": [case.name for case in CASES],
    "test_the_round_is_replaced_only_by_whoever_knows_it": [contract.name for contract in CONTRACTS],
    "test_what_is_asked_for_is_what_holds": [given.name for given, _ in ACCEPTED],
    "test_what_cannot_be_meant_is_refused_in_a_sentence": [given.name for given in REFUSED],
}
ROWS = {f"{where}.{name}": became for where, names in BECAME.items() for name, became in names.items()}


def test_every_case_has_a_name_of_its_own() -> None:
    assert [test for test, names in NAMES.items() if len(set(names)) < len(names)] == []


def test_each_of_torchs_tests_has_become_one_of_ours_or_has_a_reason() -> None:
    assert [row for row, became in ROWS.items() if not is_kept(became)] == []


def is_kept(became: str) -> bool:
    if became.startswith("("):
        return became.endswith(")")
    return all(_is_there(f"test_{ours}") for ours in became.removeprefix("test_").split(", test_"))


def _is_there(ours: str) -> bool:
    test, _, case = ours.removesuffix("]").partition("[")
    return test in OURS and (not case or case in NAMES[test])
