"""etcd under a name whose addresses change, as behind a headless Service of Kubernetes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOON_S = 6.0
"""gRPC by itself asks again after 30 s, and after a name that did not resolve in up to two minutes."""


def _refusal() -> str | None:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "needs unshare and ip"
    done = subprocess.run(["unshare", "-m", "-n", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() or "needs namespaces" if done.returncode else None


@pytest.mark.skipif(_refusal() is not None, reason=str(_refusal()))
def test_etcd_is_found_again_within_seconds_when_its_address_changes(tmp_path: Path) -> None:
    command = ["unshare", "-m", "-n", sys.executable, str(Path(__file__).with_name("dns_trial.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for title in ("moved", "second of two addresses", "IPv6", "back after it did not resolve"):
        assert found[title] < SOON_S, (title, found)
    assert "the host name does not resolve" in found["message"]
    assert not found["in doubt"]
