"""Public test tools: real etcd servers on loopback, started and broken on purpose.

    from instep.testing import EtcdServer

    with EtcdServer() as server:
        server.etcdctl("put", "/training/gpt-a/config/lr", "0.0003")

The pytest fixtures of `instep.testing.fixtures` are there wherever Instep is installed. Linux only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instep.testing._binaries import EtcdBinary, etcd_versions, find_etcd
    from instep.testing._certificates import Certificates
    from instep.testing._server import EtcdServer

__all__ = [
    # servers
    "EtcdServer",
    "Certificates",
    # binaries
    "EtcdBinary",
    "etcd_versions",
    "find_etcd",
]

# pytest imports this package in every run where Instep is installed (for its fixtures): names load when used.
_HOMES = {
    "EtcdServer": "_server",
    "Certificates": "_certificates",
    "EtcdBinary": "_binaries",
    "etcd_versions": "_binaries",
    "find_etcd": "_binaries",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
