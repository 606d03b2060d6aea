"""pytest fixtures: real etcd servers for tests. Loaded by pytest wherever Instep is installed.

| fixture | scope | value |
|---|---|---|
| `etcd_server` | test | its own `EtcdServer`, which the test may pause, kill and restart |
| `etcd_cluster` | test | its own `EtcdCluster` of three members, which the test may break |
| `etcd` | session | one shared `EtcdServer`: do not break it, and write below `namespace` only |
| `tls_etcd` | session | one shared `EtcdServer` that requires client certificates: see `certificates` |
| `namespace` | test | a prefix that no other test of the session uses, such as `/test-3-name-of-the-test` |

Servers start when a test requests them. Without an etcd on the machine, such a test fails with the fix in its message.
Nothing except pytest is imported before that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from instep.testing import EtcdCluster, EtcdServer

_NAME_LENGTH = 40
_numbers = itertools.count(1)


@pytest.fixture
def etcd_server() -> Iterator[EtcdServer]:
    """A new etcd server for this test."""
    from instep.testing import EtcdServer

    with EtcdServer() as server:
        yield server


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdCluster]:
    """A new cluster of three members for this test."""
    from instep.testing import EtcdCluster

    with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdServer]:
    """The etcd server that all tests of this session share."""
    from instep.testing import EtcdServer

    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="session")
def tls_etcd() -> Iterator[EtcdServer]:
    """The shared etcd server with TLS and client certificates."""
    from instep.testing import EtcdServer

    with EtcdServer(tls=True) as server:
        yield server


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A key prefix that no other test of this session uses; it starts with a slash and ends without one."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:_NAME_LENGTH]
    return f"/test-{next(_numbers)}-{name}"
