from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.harness.fork_server import ForkServer

from instep.testing import EtcdServer
from run.harness import TrainingRun


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets below it."""
    path = Path(tempfile.mkdtemp(prefix="ins-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def trainers() -> Iterator[ForkServer]:
    """Starts ranks of the plain trainer without the import of Instep and pydantic."""
    server = ForkServer("run.trainer")
    yield server
    server.close()


@pytest.fixture
def training(etcd: EtcdServer, short_folder: Path, namespace: str, trainers: ForkServer) -> Iterator[TrainingRun]:
    """A run on the shared etcd server, which the test must not break."""
    run = TrainingRun(etcd, short_folder, namespace=namespace, fork_server=trainers)
    yield run
    run.close()


@pytest.fixture
def fragile_training(
    etcd_server: EtcdServer, short_folder: Path, namespace: str, trainers: ForkServer
) -> Iterator[TrainingRun]:
    """A run on its own etcd server, which the test may break."""
    run = TrainingRun(etcd_server, short_folder, namespace=namespace, fork_server=trainers)
    yield run
    run.close()
