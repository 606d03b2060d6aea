"""One shallow tree of errors. Each says what happened and how to cure it, and carries its facts as fields.

Foreign errors (grpc, pydantic, the operating system) are translated into these at one border per package and never
reach a user bare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from instep.text import one_line


class InstepError(Exception):
    """The root: every error that Instep raises on purpose.

    `exit_code` is what the command line exits with when this error ends it (docs/howto/exit-codes.md). As text it is
    one line that a terminal or a log can show, whatever it quotes.
    """

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class SettingsError(InstepError):
    """A setting, an argument or a name is not usable; nothing was contacted or written."""

    exit_code = 2


# -- etcd ----------------------------------------------------------------------------------------------------------


class EtcdError(InstepError):
    """etcd answered with an error, or could not be asked. `code` is the gRPC status name, if there was one."""

    exit_code = 3
    applied_unknown = False
    """Whether a write that ended with this error may have been applied."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class EtcdUnavailable(EtcdError):
    """No endpoint answered in time. `applied_unknown` is True when a write was sent and its fate is not known."""

    exit_code = 3

    def __init__(self, message: str, *, code: str | None = None, applied_unknown: bool = False) -> None:
        super().__init__(message, code=code)
        self.applied_unknown = applied_unknown


class EtcdDenied(EtcdError):
    """etcd refused who we are: wrong user or password, no permission, or a certificate one side does not accept."""

    exit_code = 4


class EtcdFull(EtcdError):
    """etcd's database has reached its quota (alarm NOSPACE): it takes no writes until space is made and the alarm is
    disarmed. Reads, deletions and leases that stand go on.

    etcd applies a write that was on its way when the quota was reached and refuses it all the same: so its fate is not
    known, but it is settled; a reading tells.
    """

    applied_unknown = True
    REASON = (
        "its database has reached its quota (alarm NOSPACE); compact and defragment it, then run 'etcdctl alarm "
        "disarm', and raise --quota-backend-bytes if it fills up again"
    )


class Compacted(EtcdError):
    """The revision asked for is gone. List again, then watch from there. `compact_revision` is the oldest left."""

    def __init__(self, message: str, *, compact_revision: int) -> None:
        super().__init__(message, code="OUT_OF_RANGE")
        self.compact_revision = compact_revision


class HistoryChanged(Compacted):
    """etcd holds another history than the one that was read before: it was restored from a backup, emptied, or
    replaced. List again, and trust nothing that was read of it before."""


class LeaseLost(EtcdError):
    """The lease is gone, or can no longer be shown to be valid; whatever it guarded is no longer ours."""

    def __init__(self, message: str, *, lease_id: int) -> None:
        super().__init__(message, code="NOT_FOUND")
        self.lease_id = lease_id


# -- a run ---------------------------------------------------------------------------------------------------------


class ConfigError(InstepError):
    """Hyperparameters that do not parse or validate. `problems` maps each name to its reason."""

    exit_code = 5

    def __init__(self, message: str, *, problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


class RunNotFound(InstepError):
    """No run of that name is in etcd."""

    exit_code = 6


class NotRunning(RunNotFound):
    """No worker of the run trains, so there is nobody to do what was asked; nothing was written."""


class CommandRefused(InstepError):
    """What the run cannot do as things stand: refused before it was written, or declined by the run afterwards."""

    exit_code = 5


class JoinError(InstepError):
    """The worker could not become part of the run."""

    exit_code = 7


class JoinTimeout(JoinError):
    """The view did not form in time. `missing` holds the ranks that had not joined, as far as is known."""

    def __init__(self, message: str, *, missing: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class JoinRefused(JoinError):
    """The run's leader refused this worker: it disagrees with the others on the world size or the schema."""


class RunClosed(JoinError):
    """The run has ended for all its nodes: nobody joins it any more. Its id may be used for another run."""


class Evicted(InstepError):
    """This worker's rank was taken over by a later join; it must not run another step."""

    exit_code = 8

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class StepError(InstepError):
    """Steps must rise from one boundary to the next, else nobody could say what holds at a step."""

    exit_code = 2


class GateTimeout(InstepError):
    """A decision that this rank must know before it goes on could not be read from etcd in `waited_s`."""

    exit_code = 9

    def __init__(self, message: str, *, step: int, waited_s: float) -> None:
        super().__init__(message)
        self.step = step
        self.waited_s = waited_s


class Preempted(InstepError):
    """This process was told to end (SIGTERM), and the run had not agreed to save and stop while there was time for a
    save. Nothing was saved now: the newest committed checkpoint stands."""

    exit_code = 13

    def __init__(self, message: str, *, step: int, waited_s: float) -> None:
        super().__init__(message)
        self.step = step
        self.waited_s = waited_s


class AgentError(InstepError):
    """The node's agent could not be started or reached."""

    exit_code = 10


class ReceiptTimeout(InstepError):
    """The change was written, but not applied everywhere in the time given; it stays desired."""

    exit_code = 11


class ChangeRejected(ConfigError):
    """The change was written, but the run refused it; the agreed values are unchanged."""

    exit_code = 5


class CheckpointError(InstepError):
    """A checkpoint could not be written, read, or agreed on."""

    exit_code = 12


class BindError(InstepError):
    """An optimizer or scheduler that Instep cannot steer as asked."""

    exit_code = 2


# -- recipes -------------------------------------------------------------------------------------------------------


class Fenced(InstepError):
    """Another has come after us, so what we wanted to write was refused. `token` is ours, which no longer counts."""

    def __init__(self, message: str, *, token: int) -> None:
        super().__init__(message)
        self.token = token


class BarrierTimeout(InstepError):
    """Not all came to the barrier, or left it, in time. `missing` names them where names are known; `missing_count`
    tells how many they are, as far as etcd could say."""

    exit_code = 14

    def __init__(self, message: str, *, waited_s: float, missing: Sequence[str] = (), missing_count: int = 0) -> None:
        super().__init__(message)
        self.waited_s = waited_s
        self.missing = tuple(missing)
        self.missing_count = missing_count


class NameTaken(InstepError):
    """Another session holds that name. It is free again when that one leaves, or when its lease has ended."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name
