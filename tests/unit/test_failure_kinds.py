"""What a failed call means, from gRPC's status name and text."""

from __future__ import annotations

import pytest

from instep.etcd import Compare, Op
from instep.etcd._endpoints import parse_endpoints
from instep.etcd._failures import Kind, classify, is_unreachable, refusal, short_reason
from instep.etcd._permissions import needs_of


@pytest.mark.parametrize("code", ["UNKNOWN", "CANCELLED", "INTERNAL"])
@pytest.mark.parametrize("text", ["context deadline exceeded", "context canceled"])
def test_a_server_that_ran_out_of_time_may_have_applied_it(code: str, text: str) -> None:
    assert classify(code, text) is Kind.INTERRUPTED


@pytest.mark.parametrize("code", ["CANCELLED", "INTERNAL"])
def test_an_error_that_etcd_itself_never_returns_leaves_the_outcome_unknown(code: str) -> None:
    assert classify(code, "whatever a proxy says") is Kind.INTERRUPTED


def test_a_server_that_ran_out_of_time_gave_no_answer() -> None:
    assert short_reason("UNKNOWN", "context deadline exceeded") == "no answer"


@pytest.mark.parametrize(
    "text",
    [
        "errors resolving etcd.infra:2379: [field:hostname lookup error:address lookup failed for etcd.infra:2379: "
        "Domain name not found]",
        "DNS resolution failed for etcd.infra:2379: C-ares status is not ARES_SUCCESS: Domain name not found",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.7:2379: Connection refused",
        "etcdserver: rpc not supported for learner",
        "etcdserver: not capable",
        "etcdserver: no leader",
    ],
)
def test_a_request_that_certainly_did_not_reach_the_cluster_may_be_repeated(text: str) -> None:
    assert classify("UNAVAILABLE", text) is Kind.UNSENT


def test_a_proposal_that_was_dropped_was_not_applied() -> None:
    assert classify("UNKNOWN", "raft proposal dropped") is Kind.UNSENT


@pytest.mark.parametrize(
    "text", ["etcdserver: request timed out", "etcdserver: leader changed", "etcdserver: server stopped", "EOF"]
)
def test_a_request_that_may_have_been_proposed_is_not_repeated(text: str) -> None:
    assert classify("UNAVAILABLE", text) is Kind.INTERRUPTED


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "errors resolving a:1: address lookup failed for a:1: Domain name not found",
            "the host name does not resolve",
        ),
        ("errors resolving a:1: DNS server refused query", "the host name does not resolve"),
        ("errors resolving a:1: Timeout while contacting DNS servers", "no DNS server answers for the host name"),
        ("failed to connect to all addresses: connect failed: Network is unreachable", "no network route to it"),
        ("failed to connect to all addresses; Connection refused", "connection refused"),
    ],
)
def test_the_reason_is_the_true_one(text: str, reason: str) -> None:
    assert short_reason("UNAVAILABLE", text) == reason


def test_only_an_unreachable_endpoint_is_resolved_again() -> None:
    assert is_unreachable("failed to connect to all addresses; Connection refused")
    assert is_unreachable("errors resolving a:1: Domain name not found")
    assert not is_unreachable("etcdserver: too many requests")
    assert not is_unreachable("etcdserver: rpc not supported for learner")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("http://127.0.0.1:1", False),
        ("http://[::1]:1", False),
        ("http://[fe80::1%25eth0]:1", False),
        ("etcd-0:1", True),
    ],
)
def test_an_address_is_no_name(text: str, named: bool) -> None:
    (endpoint,) = parse_endpoints([text], tls=False)
    assert endpoint.is_named is named


def test_a_refusal_names_key_and_permission() -> None:
    denied = refusal("PERMISSION_DENIED", "etcdserver: permission denied", endpoint="e", subject="list a/", user="ann")
    assert "does not permit user ann to read a/*: grant its role that permission" in str(denied)


def test_without_a_user_name_the_client_certificate_names_the_user() -> None:
    denied = refusal("PERMISSION_DENIED", "etcdserver: permission denied", endpoint="e", subject="put a/b", user=None)
    assert "the user that the CN of our client certificate names to write a/b" in str(denied)


def test_each_permission_of_a_transaction_is_checked_once_writes_first() -> None:
    put = Op.put("a/b", "1")
    needs = needs_of(
        [Compare.absent("a/b"), Compare.absent("c/", prefix=True)], [put, put], [Op.delete("d/", prefix=True)]
    )
    assert list(map(str, needs)) == ["write a/b", "write d/*", "read a/b", "read c/*"]
