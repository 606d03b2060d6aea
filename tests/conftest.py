"""What holds for every test; and Instep's fixtures, also where it is not installed."""

from __future__ import annotations

import os

import pytest

from instep.testing import fixtures


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin under its entry point's name, unless pytest has found that."""
    if not config.pluginmanager.has_plugin("instep"):
        config.pluginmanager.register(fixtures, "instep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Many-fold repeats and long freezes run only when asked for: `make test-long`."""
    if os.environ.get("INSTEP_LONG") == "1":
        return
    skip = pytest.mark.skip(reason="long: INSTEP_LONG=1 or make test-long runs it")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)
