"""What holds for every test."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Many-fold repeats and long freezes run only when asked for: `make test-long`."""
    if os.environ.get("INSTEP_LONG") == "1":
        return
    skip = pytest.mark.skip(reason="long: INSTEP_LONG=1 or make test-long runs it")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)
