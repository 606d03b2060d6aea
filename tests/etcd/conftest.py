from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from instep.testing import EtcdServer

# Another version than the newest at hand: INSTEP_TEST_ETCD_VERSION=3.4 make test
VERSION = os.environ.get("INSTEP_TEST_ETCD_VERSION")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[EtcdServer]:
    """A server for tests that do not break it; each uses its own keys."""
    with EtcdServer(version=VERSION) as running:
        yield running


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    """A separate server for this test, which may break it."""
    with EtcdServer(version=VERSION) as running:
        yield running
