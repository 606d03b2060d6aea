"""Public test tools: real etcd servers and clusters, started and broken on purpose.

    from instep.testing import EtcdCluster, EtcdServer, Proxy

    with EtcdServer() as server:
        server.etcdctl("put", "/training/gpt-a/config/lr", "0.0003")

    with EtcdCluster(proxied=True) as cluster:
        cluster.isolate(cluster.leader())

The pytest fixtures of `instep.testing.fixtures` are there wherever Instep is installed. Linux only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instep.testing._binaries import EtcdBinary, etcd_versions, find_etcd
    from instep.testing._certificates import Certificates
    from instep.testing._cluster import EtcdCluster
    from instep.testing._health import MemberStatus
    from instep.testing._line import LinkStatistics
    from instep.testing._link import Link
    from instep.testing._member import EtcdMember
    from instep.testing._namespaces import namespaces_refusal
    from instep.testing._proxy import Proxy
    from instep.testing._server import EtcdServer
    from instep.testing._slow import slow_disk_refusal

__all__ = [
    # servers
    "EtcdServer",
    "EtcdCluster",
    "EtcdMember",
    "MemberStatus",
    "Certificates",
    # networks
    "Proxy",
    "Link",
    "LinkStatistics",
    # binaries
    "EtcdBinary",
    "etcd_versions",
    "find_etcd",
    # what this machine allows
    "namespaces_refusal",
    "slow_disk_refusal",
]

# pytest imports this package in every run where Instep is installed (for its fixtures): names load when used.
_HOMES = {
    "EtcdServer": "_server",
    "EtcdCluster": "_cluster",
    "EtcdMember": "_member",
    "MemberStatus": "_health",
    "Certificates": "_certificates",
    "Proxy": "_proxy",
    "Link": "_link",
    "LinkStatistics": "_line",
    "EtcdBinary": "_binaries",
    "etcd_versions": "_binaries",
    "find_etcd": "_binaries",
    "namespaces_refusal": "_namespaces",
    "slow_disk_refusal": "_slow",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
