"""What a server and a cluster have in common: access for clients, and cleanup."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from instep.errors import EtcdError, SettingsError
from instep.etcd_server.binaries import EtcdBinary
from instep.etcd_server.etcdctl import run_etcdctl
from instep.testing._access import Access
from instep.testing._certificates import Certificates
from instep.testing._resources import Resources


class EtcdService(ABC):
    """Serves etcd's API at `endpoints`, for a `with` block or between `start()` and `close()`."""

    binary: EtcdBinary
    access: Access
    _resources: Resources

    def _own(self, resources: Resources) -> None:
        """Releases the resources when this object is closed or garbage collected."""
        self._release = weakref.finalize(self, resources.release)

    @abstractmethod
    def start(self) -> Self:
        """Starts it and waits until it serves."""

    @property
    @abstractmethod
    def endpoints(self) -> list[str]:
        """The client URLs of all members."""

    @property
    @abstractmethod
    def _called(self) -> str:
        """Its name in error messages."""

    @property
    def _etcdctl_endpoints(self) -> list[str]:
        return self.endpoints

    @property
    def certificates(self) -> Certificates:
        """The certificates. Raises SettingsError without TLS."""
        if self.access.certificates is None:
            raise SettingsError(f"this server has no TLS: create it with {type(self).__name__}(tls=True)")
        return self.access.certificates

    def environment(self) -> dict[str, str]:
        """The INSTEP_* variables for a client process: the endpoints, and the first user."""
        return self.access.environment(self.endpoints, self._resources.folder)

    def etcdctl(self, *args: str, check: bool = True) -> str:
        """Runs etcdctl with the harness's certificate and the first user; flags in `args` win over those.

        Returns its output without the last newline. A failure raises EtcdError; with `check=False`, the error output is
        appended to the result instead. Takes at most 30 s. Raises EtcdError before `start()` and after `close()`.
        """
        if self._resources.released:
            raise EtcdError(f"{self._called} has been closed: create a new one")
        return run_etcdctl(self.binary, self.access.flags(self._etcdctl_endpoints), args, check=check)

    def close(self) -> None:
        """Stops it permanently and removes its temporary folder with the logs."""
        self._release()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _extras(self) -> str:
        return (" tls" if self.access.certificates else "") + (" auth" if self.access.users else "")
