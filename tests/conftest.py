"""Instep's own fixtures, also where the tests run from a checkout that is not installed."""

from __future__ import annotations

import pytest

from instep.testing import fixtures


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin under its entry point's name, unless pytest has found that."""
    if not config.pluginmanager.has_plugin("instep"):
        config.pluginmanager.register(fixtures, "instep")
