from __future__ import annotations

from collections.abc import Iterator

import pytest

from instep.testing import EtcdServer


@pytest.fixture(scope="module")
def shared_server() -> Iterator[EtcdServer]:
    """A server for tests that do not break it; each keeps to keys of its own."""
    with EtcdServer() as running:
        yield running


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    """A server of the test's own, to break."""
    with EtcdServer() as running:
        yield running
