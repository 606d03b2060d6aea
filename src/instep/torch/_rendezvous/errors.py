"""Errors for torchrun: programs can catch torch's classes, and torchrun ends with one line instead of a traceback.

They derive from SystemExit: Python prints its text and exits with code 1, and torchrun does not catch it.
"""

from __future__ import annotations

from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from instep.errors import EtcdError, InstepError, JoinTimeout, RunClosed, SettingsError


class _TorchrunError(SystemExit):
    """`code` is the message, or the exit code if there is nothing to print."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(f"instep: {message}")
        self.code = f"instep: {message}" if code is None else code


class RendezvousSettingsError(_TorchrunError, RendezvousConnectionError, ValueError):
    """An option, an endpoint or a file is not usable."""


class RendezvousEtcdError(_TorchrunError, RendezvousConnectionError):
    """etcd cannot be reached, or refuses the client."""


class RendezvousIncompleteError(_TorchrunError, RendezvousTimeoutError):
    """Not enough nodes joined in time."""


class RendezvousEndedError(_TorchrunError, RendezvousClosedError):
    """The run has ended. The exit code is 0 for a spare, which was not needed."""


class RendezvousRefusedError(_TorchrunError, RendezvousStateError):
    """This node does not fit the run, or cannot read the records of the others."""


def error_for_torchrun(error: InstepError, *, spare: bool = False) -> _TorchrunError:
    """The error to raise in torchrun."""
    text = str(error)
    if isinstance(error, RunClosed):
        return RendezvousEndedError(text, 0 if spare else None)
    if isinstance(error, JoinTimeout):
        return RendezvousIncompleteError(text)
    if isinstance(error, SettingsError):
        return RendezvousSettingsError(text)
    return RendezvousEtcdError(text) if isinstance(error, EtcdError) else RendezvousRefusedError(text)
