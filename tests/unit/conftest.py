from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The parent of run folders during the test, with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="ins-", dir="/tmp"))
    monkeypatch.setenv("INSTEP_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)
