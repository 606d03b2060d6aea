"""What a failed call means, from gRPC's status name and text alone. Pure."""

from __future__ import annotations

import enum

from instep.errors import Compacted, EtcdDenied, EtcdError, EtcdFull, EtcdUnavailable, HistoryChanged, LeaseLost
from instep.etcd._grpc import aio


class Kind(enum.Enum):
    """What a client does about a failed call."""

    UNSENT = "the request was certainly not applied: any request may be repeated"
    INTERRUPTED = "the request may have been applied: only a read may be repeated"
    SILENT = "no answer in time: as interrupted, and the connection is suspect"
    TOKEN = "the token is not valid (any more): authenticate, then repeat"
    DENIED = "etcd refused the user or its permissions"
    COMPACTED = "the revision asked for is gone"
    LEASE = "the lease does not exist"
    FULL = "the database has reached its quota: no writes until people make space"
    OTHER = "etcd refused the request itself"


_TOKEN = (
    "invalid auth token",
    "revision of auth store is old",
    "revision in header is old",
    "user name is empty",
)
_DENIED = ("permission denied", "authentication failed", "invalid auth management")
_UNRESOLVED = ("resolution failed", "could not resolve", "errors resolving", "address lookup failed")
_UNSENT = ("failed to connect", *_UNRESOLVED, "connection refused", "too many requests")
_UNAPPLIED = (
    "rpc not supported for learner",
    "etcdserver: not capable",
    "etcdserver: no leader",
    "raft proposal dropped",
)
"""Answers of a server that has not proposed the request to the cluster, with any status code."""
_BROKEN = (
    "rst_stream",
    "stream removed",
    "socket closed",
    "connection reset",
    "broken pipe",
    "channel closed",
    # The literal text of a server whose request timed out while it waited for its quorum.
    "context deadline exceeded",
    "context canceled",
)


def classify(code: str, details: str) -> Kind:
    text = details.lower()
    if code == "UNAUTHENTICATED" or any(sign in text for sign in _TOKEN):
        return Kind.TOKEN
    if code == "PERMISSION_DENIED" or any(sign in text for sign in _DENIED):
        return Kind.DENIED
    if "has been compacted" in text:
        return Kind.COMPACTED
    if "requested lease not found" in text:
        return Kind.LEASE
    if "database space exceeded" in text:
        return Kind.FULL
    return _classify_transport(code, text)


def _classify_transport(code: str, text: str) -> Kind:
    if code == "DEADLINE_EXCEEDED":
        return Kind.SILENT
    if any(sign in text for sign in _UNAPPLIED):
        return Kind.UNSENT
    if code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and any(sign in text for sign in _UNSENT):
        return Kind.UNSENT
    if code == "UNAVAILABLE":
        return Kind.INTERRUPTED
    if code in ("INTERNAL", "CANCELLED") or (code == "UNKNOWN" and any(sign in text for sign in _BROKEN)):
        return Kind.INTERRUPTED  # etcd refuses nothing with the first two: a proxy or gRPC says so in the middle
    return Kind.OTHER


def kind_of(error: aio.AioRpcError) -> Kind:
    return classify(code_of(error), details_of(error))


def code_of(error: aio.AioRpcError) -> str:
    return str(error.code().name)


def details_of(error: aio.AioRpcError) -> str:
    return error.details() or ""


def short_reason(code: str, details: str) -> str:
    """A few words about an endpoint that could not be used."""
    text = details.lower()
    if any(sign in text for sign in _UNRESOLVED):
        slow = "timeout" in text or "could not contact" in text
        return "no DNS server answers for the host name" if slow else "the host name does not resolve"
    if "refused" in text:
        return "connection refused"
    if "unreachable" in text or "no route" in text:
        return "no network route to it"
    if "not supported for learner" in text:
        return "it is a learner, which serves nothing until it is promoted; name voting members"
    if code == "DEADLINE_EXCEEDED" or any(sign in text for sign in ("timed out", "timeout", "deadline exceeded")):
        return "no answer"
    if "handshake" in text:
        return "the TLS handshake failed"
    if "parsing http/2" in text:
        return "the server there is not etcd"
    if any(sign in text for sign in ("reset", "closed", "rst_stream", "broken pipe")):
        return "the connection broke"
    return details.removeprefix("etcdserver: ").splitlines()[0][:120] if details else code.lower()


def is_unreachable(details: str) -> bool:
    """Whether no connection could be made: then the endpoint's name may resolve to another address now."""
    text = details.lower()
    return any(sign in text for sign in ("failed to connect", *_UNRESOLVED))


def may_need_diagnosis(details: str) -> bool:
    """Whether the cause may be permanent, such as an unknown certificate."""
    text = details.lower()
    if "failed to connect" not in text and "handshake" not in text:
        return False
    return not any(sign in text for sign in ("refused", "resol", "timed out", "timeout occurred", "unreachable"))


def refusal(code: str, details: str, *, endpoint: str, subject: object, user: str | None, lease: int = 0) -> EtcdError:
    """The typed error for a call that etcd refused, in one sentence with its fix."""
    kind = classify(code, details)
    who = f"user {user}" if user else "a client without a user"
    if kind is Kind.TOKEN:
        return _token_refusal(code, endpoint, user)
    if kind is Kind.DENIED and "authentication failed" in details.lower():
        return EtcdDenied(f"etcd at {endpoint} refused the password of {who}: correct user and password.", code=code)
    if kind is Kind.DENIED:
        return not_permitted(endpoint, _needed(str(subject)), user, code=code)
    if kind is Kind.COMPACTED:
        return Compacted(f"etcd has compacted the revision asked for ({subject}): list again.", compact_revision=0)
    if "required revision is a future revision" in details.lower():
        return HistoryChanged(
            f"etcd has not reached the revision asked for ({subject}): its history went back, or that "
            "revision does not exist yet; list again.",
            compact_revision=0,
        )
    if kind is Kind.LEASE:
        return LeaseLost(
            f"etcd does not know the lease {lease:x} ({subject}): it expired or was revoked.", lease_id=lease
        )
    if kind is Kind.FULL:
        return EtcdFull(f"etcd at {endpoint} takes no writes: {EtcdFull.REASON}.", code=code)
    if code == "UNIMPLEMENTED":
        return EtcdError(f"The server at {endpoint} is not an etcd v3 server: correct the endpoint.", code=code)
    text = details.removeprefix("etcdserver: ")
    return EtcdError(f"etcd at {endpoint} refused to {subject}: {text or code}.", code=code)


_NEEDS = {"get": "read", "list": "read", "watch": "read", "put": "write", "delete": "write"}


def _needed(subject: str) -> str:
    """`write a/b` for the subject "put a/b"."""
    verb, _, key = subject.partition(" ")
    return f"{_NEEDS[verb]} {key}{'*' if verb in ('list', 'watch') else ''}" if verb in _NEEDS else subject


def not_permitted(endpoint: str, needed: str, user: str | None, *, code: str = "PERMISSION_DENIED") -> EtcdDenied:
    """The error for a user without a permission. Without a user, etcd uses the certificate's CN as one."""
    listed = "docs/howto/access.md lists what each role needs"
    if user:
        text = f"user {user} to {needed}: grant its role that permission ({listed})"
    else:
        text = (
            f"the user that the CN of our client certificate names to {needed}: grant that user's role the permission "
            f"({listed}), or give a user and a password"
        )
    return EtcdDenied(f"etcd at {endpoint} does not permit {text}.", code=code)


def _token_refusal(code: str, endpoint: str, user: str | None) -> EtcdDenied:
    if user is None:
        return EtcdDenied(
            f"etcd at {endpoint} requires authentication: give a user and a password, or a client certificate whose CN "
            "is the name of an etcd user.",
            code=code,
        )
    return EtcdDenied(
        f"etcd at {endpoint} does not accept the token it gave to user {user}: check its authentication settings.",
        code=code,
    )


def unavailable(reasons: dict[str, str], *, timeout_s: float, applied_unknown: bool, code: str) -> EtcdUnavailable:
    """The error if no endpoint answered: one sentence with the endpoints, why each failed, and the fix."""
    places = ", ".join(f"{endpoint} ({reason})" for endpoint, reason in reasons.items())
    if applied_unknown:
        what = "the connection failed after a write was sent; it may have been applied, so read before repeating it"
    else:
        what = f"no answer within {timeout_s:.3g} s; check that etcd runs there and that the endpoints are right"
    return EtcdUnavailable(f"etcd at {places}: {what}.", code=code, applied_unknown=applied_unknown)
