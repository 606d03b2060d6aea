"""What a failed call means, from gRPC's status name and text."""

from __future__ import annotations

import pytest

from instep.etcd._failures import Kind, classify, short_reason


@pytest.mark.parametrize("code", ["UNKNOWN", "CANCELLED", "INTERNAL"])
@pytest.mark.parametrize("text", ["context deadline exceeded", "context canceled"])
def test_a_server_that_ran_out_of_time_may_have_applied_it(code: str, text: str) -> None:
    assert classify(code, text) is Kind.INTERRUPTED


@pytest.mark.parametrize("code", ["CANCELLED", "INTERNAL"])
def test_what_etcd_itself_never_says_leaves_open_what_became_of_the_request(code: str) -> None:
    assert classify(code, "whatever a proxy says") is Kind.INTERRUPTED


def test_a_server_that_ran_out_of_time_gave_no_answer() -> None:
    assert short_reason("UNKNOWN", "context deadline exceeded") == "no answer"
