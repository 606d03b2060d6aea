"""Asks an etcd member over HTTP whether it serves."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from instep.errors import EtcdDenied, EtcdError

T = TypeVar("T")

_POLL_S = 0.02
_REQUEST_TIMEOUT_S = 1.0


def is_healthy(endpoint: str, context: ssl.SSLContext | None = None) -> bool:
    """Whether the member has a leader and a read through it succeeds. Takes at most 1 s."""
    try:
        return _request(endpoint, context, "GET", "/health").get("health") == "true"
    except EtcdError:
        return False


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What a member reports about itself. `leader` is 0 if it knows none; `revision` is that of its own store."""

    member: int
    leader: int
    term: int
    revision: int


def status(endpoint: str, context: ssl.SSLContext | None = None, token: str | None = None) -> MemberStatus:
    """What the member reports about itself. Raises EtcdError without an answer in 1 s, EtcdDenied if it refuses."""
    answer = _request(endpoint, context, "POST", "/v3/maintenance/status", b"{}", token)
    if "code" in answer:
        raise EtcdDenied(f"{endpoint} refused to give its status: {answer.get('message')}")
    try:
        header = answer["header"]
        # In etcd's JSON, 64-bit numbers are strings, and zeros are left out.
        return MemberStatus(
            member=int(header["member_id"]),
            leader=int(answer.get("leader", 0)),
            term=int(header.get("raft_term", 0)),
            revision=int(header.get("revision", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EtcdError(f"{endpoint} gave no status but {answer}") from error


def authenticate(endpoint: str, context: ssl.SSLContext | None, user: str, password: str) -> str:
    """A token for the user. Raises EtcdError without one in 1 s: a member without a quorum issues none."""
    body = json.dumps({"name": user, "password": password}).encode()
    answer = _request(endpoint, context, "POST", "/v3/auth/authenticate", body)
    if "token" not in answer:
        raise EtcdDenied(f"{endpoint} refused {user}: {answer.get('message', answer)}")
    return str(answer["token"])


def answers_peers(peer_url: str) -> bool:
    """Whether the member answers its peers, with or without a quorum. Takes at most 1 s."""
    try:
        return "etcdserver" in _request(peer_url, None, "GET", "/version")
    except EtcdError:
        return False


def is_open(host: str, port: int) -> bool:
    """Whether a TCP connection to the port succeeds."""
    try:
        socket.create_connection((host, port), timeout=_REQUEST_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _request(
    endpoint: str,
    context: ssl.SSLContext | None,
    method: str,
    path: str,
    body: bytes | None = None,
    token: str | None = None,
) -> dict[str, Any]:
    url = urlsplit(endpoint)
    host, port = url.hostname or "", url.port
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_REQUEST_TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request(method, path, body, {} if token is None else {"Authorization": token})
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EtcdError(f"{endpoint}{path} did not answer: {error}") from error
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise EtcdError(f"{endpoint}{path} answered {answer!r}")
    return answer


def wait_until(look: Callable[[], T], *, timeout_s: float, poll_s: float = _POLL_S) -> T:
    """Calls `look` until its result is true, for at most `timeout_s`. Returns the last result."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(poll_s)  # another process is polled: it sends no events
    return found
