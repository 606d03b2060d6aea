"""Public test tools: real etcd servers and clusters with faults on demand.

    from instep.testing import EtcdCluster, EtcdServer, Proxy

    with EtcdServer() as server:
        server.etcdctl("put", "/training/gpt-a/config/lr", "0.0003")

    with EtcdCluster(proxied=True) as cluster:
        cluster.isolate(cluster.leader())

The pytest fixtures of `instep.testing.fixtures` are available wherever Instep is installed. Linux only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instep.etcd_server.binaries import EtcdBinary, etcd_versions, find_etcd
    from instep.etcd_server.health import MemberStatus
    from instep.testing._certificates import Certificates
    from instep.testing._cluster import EtcdCluster
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
    # capabilities of this machine
    "namespaces_refusal",
    "slow_disk_refusal",
]

# pytest imports this package wherever Instep is installed (for its fixtures), so names load on first use.
_HOMES = {
    "EtcdServer": "instep.testing._server",
    "EtcdCluster": "instep.testing._cluster",
    "EtcdMember": "instep.testing._member",
    "MemberStatus": "instep.etcd_server.health",
    "Certificates": "instep.testing._certificates",
    "Proxy": "instep.testing._proxy",
    "Link": "instep.testing._link",
    "LinkStatistics": "instep.testing._line",
    "EtcdBinary": "instep.etcd_server.binaries",
    "etcd_versions": "instep.etcd_server.binaries",
    "find_etcd": "instep.etcd_server.binaries",
    "namespaces_refusal": "instep.testing._namespaces",
    "slow_disk_refusal": "instep.testing._slow",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
