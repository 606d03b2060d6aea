"""Programs that start their workers by elastic_launch use etcd3 too, whichever way they start processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instep.testing import EtcdServer
from torchrun.elastic import FOLDER, SOURCE

CALLER = FOLDER / "elastic_caller.py"
LIMIT_S = 120.0

pytestmark = pytest.mark.torch


@pytest.mark.long
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_functions_run_on_all_nodes_and_again_after_a_failure(
    etcd: EtcdServer, namespace: str, tmp_path: Path, start_method: str
) -> None:
    with contextlib.ExitStack() as stack:
        callers = []
        for _ in range(2):
            arguments = [start_method, etcd.endpoints[0], namespace, str(tmp_path / "failed")]
            caller = subprocess.Popen(
                [sys.executable, str(CALLER), *arguments],
                env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            callers.append(stack.enter_context(caller))
            stack.callback(caller.kill)
        found = [caller.communicate(timeout=LIMIT_S) for caller in callers]
    assert [caller.returncode for caller in callers] == [0, 0], found
    assert sorted(out for out, _ in found) == ["found [(0, (2, 1))]\n", "found [(1, (2, 1))]\n"], found


def test_children_forked_while_etcd_is_spoken_to_live(etcd: EtcdServer, namespace: str) -> None:
    """gRPC's own at-fork work ends one in ten of them by a segmentation fault."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "elastic_forker.py"), etcd.endpoints[0], namespace, "100"],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stdout == "{7: 100}\n", done
