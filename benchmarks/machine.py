"""The machine and the versions of a measurement, without names of hosts, users or locations."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from instep.testing import find_etcd


def facts() -> dict[str, str]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": f"{os.cpu_count()} × {_processor()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "etcd": f"{find_etcd(None).version}, one member on loopback",
        "grpcio": _version("grpcio"),
        "pydantic": _version("pydantic"),
        "torch": _version("torch"),
    }


def load() -> float:
    """The average number of runnable processes per core in the last minute; above 0.3, others disturb us."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
