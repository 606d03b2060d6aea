"""Errors for torchrun: programs catch torch's own classes, and a command ends with one sentence instead of a traceback.

Python prints the text of a SystemExit and ends with exit code 1; torchrun lets it pass.
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
    """`code` is the sentence, or the exit code where nothing needs to be said."""

    def __init__(self, sentence: str, code: int | None = None) -> None:
        super().__init__(f"instep: {sentence}")
        self.code = f"instep: {sentence}" if code is None else code


class WrongSettings(_TorchrunError, RendezvousConnectionError, ValueError):
    """An option, an endpoint or a file that cannot be used."""


class NotConnected(_TorchrunError, RendezvousConnectionError):
    """Etcd cannot be reached, or refuses us."""


class NotComplete(_TorchrunError, RendezvousTimeoutError):
    """There were not nodes enough in time."""


class HasEnded(_TorchrunError, RendezvousClosedError):
    """The run has ended. Exit code 0 for a spare: it was not needed."""


class NotAccepted(_TorchrunError, RendezvousStateError):
    """This node does not fit the run, or cannot read what the others have written."""


def error_for_torchrun(error: InstepError, *, spare: bool = False) -> _TorchrunError:
    """The error as torchrun is to see it."""
    text = str(error)
    if isinstance(error, RunClosed):
        return HasEnded(text, 0 if spare else None)
    if isinstance(error, JoinTimeout):
        return NotComplete(text)
    if isinstance(error, SettingsError):
        return WrongSettings(text)
    return NotConnected(text) if isinstance(error, EtcdError) else NotAccepted(text)
