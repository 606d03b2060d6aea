"""pytest fixtures: real etcd servers for tests. Loaded by pytest wherever Instep is installed.

| fixture | scope | gives |
|---|---|---|
| `etcd_server` | test | an `EtcdServer` of its own, to be paused, killed and restarted |
| `etcd_cluster` | test | an `EtcdCluster` of three members of its own, to be broken |
| `etcd` | session | one shared `EtcdServer`: do not break it, and write below `namespace` only |
| `tls_etcd` | session | one shared `EtcdServer` that demands client certificates: `certificates` has them |
| `namespace` | test | a prefix that no other test of the session uses, such as `/test-3-the-tests-name` |

Servers start when a test asks for them; without an etcd on the machine such a test errors with the cure.
Nothing but pytest is imported before that.
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
    """A fresh etcd server of this test's own."""
    from instep.testing import EtcdServer

    with EtcdServer() as server:
        yield server


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdCluster]:
    """A fresh cluster of three members of this test's own."""
    from instep.testing import EtcdCluster

    with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdServer]:
    """The etcd server that the tests of this session share."""
    from instep.testing import EtcdServer

    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="session")
def tls_etcd() -> Iterator[EtcdServer]:
    """The shared etcd server that speaks TLS and demands client certificates."""
    from instep.testing import EtcdServer

    with EtcdServer(tls=True) as server:
        yield server


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A key prefix that no other test of this session uses; it starts with a slash and ends without one."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:_NAME_LENGTH]
    return f"/test-{next(_numbers)}-{name}"
