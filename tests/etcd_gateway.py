"""Reads keys by etcd's HTTP gateway: a condition that is looked at again and again must not start a process each time.

Servers with TLS or users, and whatever the gateway does not answer, are read with etcdctl.
"""

from __future__ import annotations

import base64
import json
import urllib.request

from instep.testing import EtcdCluster, EtcdServer

TIMEOUT_S = 2.0


def read_keys(server: EtcdServer | EtcdCluster, key: str, *, prefix: bool = False) -> dict[str, str]:
    """The key, or all that begin with it, and their values. Raises EtcdError where etcdctl fails."""
    if not (server.access.users or server.access.certificates):
        for endpoint in server.endpoints:
            try:
                return _range(endpoint, key, prefix=prefix)
            except OSError:
                pass  # another member may answer
    flags = ["--prefix"] if prefix else []
    document = json.loads(server.etcdctl("get", "-w", "json", *flags, "--", key))
    return _decoded(document)


def _range(endpoint: str, key: str, *, prefix: bool) -> dict[str, str]:
    fields = {"key": _encoded(key.encode())}
    if prefix:
        fields["range_end"] = _encoded(key.encode()[:-1] + bytes([key.encode()[-1] + 1]))
    request = urllib.request.Request(f"{endpoint}/v3/kv/range", data=json.dumps(fields).encode())  # http
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # of a server of the test
        return _decoded(json.loads(answer.read()))


def _decoded(document: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {_text(item["key"]): _text(item.get("value", "")) for item in document.get("kvs", [])}


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="replace")
