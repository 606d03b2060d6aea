"""One shallow tree of errors. Each message says what happened and how to fix it; details are in typed fields.

Each package translates foreign errors (grpc, pydantic, the operating system) into these in one place, so no foreign
error reaches a user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from instep.text import one_line


class InstepError(Exception):
    """The base class of all errors that Instep raises on purpose.

    `exit_code` is the exit code of the command line for this error (docs/howto/exit-codes.md). Its text is one line
    that is safe to show in a terminal or a log, whatever it quotes.
    """

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class SettingsError(InstepError):
    """A setting, an argument or a name is not usable. Nothing was contacted or written."""

    exit_code = 2


# -- etcd ----------------------------------------------------------------------------------------------------------


class EtcdError(InstepError):
    """etcd answered with an error, or could not be reached. `code` is the gRPC status name, if there was one."""

    exit_code = 3
    applied_unknown = False
    """Whether a write that failed with this error may have been applied."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class EtcdUnavailable(EtcdError):
    """No endpoint answered in time. `applied_unknown`: a write was sent, and it is unknown whether it was applied."""

    exit_code = 3

    def __init__(self, message: str, *, code: str | None = None, applied_unknown: bool = False) -> None:
        super().__init__(message, code=code)
        self.applied_unknown = applied_unknown


class EtcdDenied(EtcdError):
    """etcd refused the client: wrong user or password, no permission, or a certificate that one side rejects."""

    exit_code = 4


class EtcdFull(EtcdError):
    """etcd's database has reached its quota (alarm NOSPACE). It accepts no writes until there is space and the alarm is
    disarmed. Reads, deletions and existing leases keep working.

    etcd may have applied a write that was in flight when the quota was reached, although it reports this error. It does
    not apply the write later: a read shows the result.
    """

    applied_unknown = True
    REASON = (
        "its database has reached its quota (alarm NOSPACE); compact and defragment it, then run 'etcdctl alarm "
        "disarm', and raise --quota-backend-bytes if it fills up again"
    )


class Compacted(EtcdError):
    """The requested revision was compacted. List again, then watch from there. `compact_revision`: the oldest one
    left."""

    def __init__(self, message: str, *, compact_revision: int) -> None:
        super().__init__(message, code="OUT_OF_RANGE")
        self.compact_revision = compact_revision


class HistoryChanged(Compacted):
    """etcd has another history than the one read before: it was restored from a backup, emptied, or replaced. List
    again, and discard what was read before."""


class LeaseLost(EtcdError):
    """The lease has expired, or may have expired. What it protected can belong to another process."""

    def __init__(self, message: str, *, lease_id: int) -> None:
        super().__init__(message, code="NOT_FOUND")
        self.lease_id = lease_id


# -- a run ---------------------------------------------------------------------------------------------------------


class ConfigError(InstepError):
    """Hyperparameters do not parse or validate. `problems` maps each name to the reason."""

    exit_code = 5

    def __init__(self, message: str, *, problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


class RunNotFound(InstepError):
    """etcd has no run with that name."""

    exit_code = 6


class NotRunning(RunNotFound):
    """No worker of the run is training, so the request cannot be carried out. Nothing was written."""


class CommandRefused(InstepError):
    """The run cannot execute a command now. It was refused before it was written, or declined by the run."""

    exit_code = 5


class JoinError(InstepError):
    """The worker could not join the run."""

    exit_code = 7


class JoinTimeout(JoinError):
    """The view did not form in time. `missing`: the ranks that had not joined, as far as known."""

    def __init__(self, message: str, *, missing: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class JoinRefused(JoinError):
    """The leader refused this worker: its world size or schema differs from that of the others."""


class RunClosed(JoinError):
    """The run has ended for all nodes, and no node can join it. Its id can be used for another run."""


class Evicted(InstepError):
    """A later join took over this worker's rank. The worker must not run another step."""

    exit_code = 8

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class StepError(InstepError):
    """Steps must increase from one boundary to the next: otherwise, the values of a step would be ambiguous."""

    exit_code = 2


class GateTimeout(InstepError):
    """A decision that this rank needs before its next step could not be read from etcd within `waited_s` seconds."""

    exit_code = 9

    def __init__(self, message: str, *, step: int, waited_s: float) -> None:
        super().__init__(message)
        self.step = step
        self.waited_s = waited_s


class Preempted(InstepError):
    """This process received SIGTERM, and the run did not agree to save and stop while there was time for a save. No
    checkpoint was saved; the newest committed one remains."""

    exit_code = 13

    def __init__(self, message: str, *, step: int, waited_s: float) -> None:
        super().__init__(message)
        self.step = step
        self.waited_s = waited_s


class AgentError(InstepError):
    """The agent of this node could not be started or reached."""

    exit_code = 10


class ReceiptTimeout(InstepError):
    """The change was written, but not applied on all ranks in time. It stays desired."""

    exit_code = 11


class ChangeRejected(ConfigError):
    """The change was written, but the run rejected it. The agreed values are unchanged."""

    exit_code = 5


class CheckpointError(InstepError):
    """A checkpoint could not be written, read, or agreed on."""

    exit_code = 12


class BindError(InstepError):
    """`bind` cannot steer this optimizer or scheduler as requested."""

    exit_code = 2


# -- recipes -------------------------------------------------------------------------------------------------------


class Fenced(InstepError):
    """A newer holder exists, so the write was refused. `token` is the outdated token of the caller."""

    def __init__(self, message: str, *, token: int) -> None:
        super().__init__(message)
        self.token = token


class BarrierTimeout(InstepError):
    """Not all participants reached the barrier, or left it, in time. `missing`: their names, where known;
    `missing_count`: how many are missing, as far as known."""

    exit_code = 14

    def __init__(self, message: str, *, waited_s: float, missing: Sequence[str] = (), missing_count: int = 0) -> None:
        super().__init__(message)
        self.waited_s = waited_s
        self.missing = tuple(missing)
        self.missing_count = missing_count


class NameTaken(InstepError):
    """Another session holds that name. It becomes free when that session leaves or its lease expires."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name
