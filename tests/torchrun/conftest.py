from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.harness.fork_server import ForkServer

from instep.testing import EtcdCluster, EtcdServer
from torchrun.elastic import ElasticRun


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """A handler tells the processes to come where etcd is."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def elastic_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="ins-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def elastic(etcd: EtcdServer, elastic_folder: Path, fork_server: ForkServer, namespace: str) -> Iterator[ElasticRun]:
    """A run on the shared etcd server, which the test must leave alone."""
    run = ElasticRun(etcd, elastic_folder, fork_server, namespace=namespace)
    yield run
    run.close()


@pytest.fixture
def elastic_on_cluster(
    etcd_cluster: EtcdCluster, elastic_folder: Path, fork_server: ForkServer, namespace: str
) -> Iterator[ElasticRun]:
    """A run on three members of its own, which the test may break."""
    run = ElasticRun(etcd_cluster, elastic_folder, fork_server, namespace=namespace)
    yield run
    run.close()
