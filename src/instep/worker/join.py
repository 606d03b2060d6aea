"""How a training process becomes a worker of a run."""

from __future__ import annotations

import logging
import os
import string
import time
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypeVar

from instep.errors import JoinTimeout, SettingsError
from instep.names import INCARNATION_LENGTH, check_run_name
from instep.scalar import format_scalar
from instep.settings import Settings, resolve
from instep.wire.messages import Failure, FromAgent, JoinWait
from instep.worker import children
from instep.worker.agent_connection import AgentConnection, ConnectionLost
from instep.worker.agent_session import AgentSession
from instep.worker.hyper import Codec, FreeConfig, Hyperparameters
from instep.worker.place import initialized_group, number, place
from instep.worker.replay import Replay
from instep.worker.run import Run
from instep.worker.sigterm import notice_signals

log = logging.getLogger("instep")

_ALPHABET = string.ascii_letters + string.digits
SAY_EVERY_S = 10.0

Hyper = TypeVar("Hyper", bound=Hyperparameters | FreeConfig, default=FreeConfig)


def join(
    name: str,
    schema: type[Hyper] | None = None,
    *,
    etcd: str | Sequence[str] | None = None,
    namespace: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    timeout_s: float = 300.0,
    etcd_patience_s: float = 300.0,
    replay: str | os.PathLike[str] | None = None,
    max_restarts: int | None = None,
    take_over: bool = False,
    protect_loader_workers: bool = True,
    prefer: str = "etcd",
) -> Run[Hyper]:
    """Joins run `name` and returns when all ranks are there, each with the same values.

    `rank` and `world_size` come, if not given, from torch.distributed where it is initialized, else from RANK and
    WORLD_SIZE, else from the variables of MPI or Slurm, else they are 0 and 1. `etcd` and `namespace` come from
    the INSTEP_ variables if not given. `timeout_s` bounds the whole wait for etcd and the other ranks;
    `etcd_patience_s` bounds each later wait at a gate. When a rank's process has ended, the next process that joins
    as that rank replaces it. While it trains, another process that joins as that rank is refused, unless `take_over` is
    true or one torchrun job started both; then the former one ends with `Evicted`.
    `replay` is a schedule file (`instep history RUN --export FILE`), the same on all ranks: the values come from it, at
    its steps, and live changes are refused. `max_restarts` (INSTEP_MAX_RESTARTS if not given, else no limit) is how
    often the run may start again after a failure since it ended cleanly or since `instep reset RUN`; where ranks
    disagree, the smallest counts. `protect_loader_workers` keeps DataLoader workers that this process starts afterwards
    alive when a SIGTERM is sent to the whole job (docs/howto/preemption.md); False leaves multiprocessing alone.
    `prefer` ("etcd" or "script", the same on all ranks) says which values the run starts with if etcd's differ from the
    script's. Live changes work with both, and are kept when torchrun restarts ranks after a failure.

    Raises SettingsError (bad arguments, an unusable schedule; nothing was contacted), EtcdDenied (credentials or
    certificates refused), JoinRefused (this rank disagrees with the others or trains already, or the run has failed too
    often), JoinTimeout, ConfigError, AgentError.
    """
    check_run_name(name)
    rank, world_size = place(rank, world_size, os.environ, initialized_group())
    allowed = _max_restarts(max_restarts, os.environ)
    signals = notice_signals(os.environ)
    codec = Codec(schema, prefer_script=_prefers_script(prefer, schema, replay))
    schedule = Replay.read(replay, codec) if replay is not None else None
    settings = _settings(etcd, namespace)
    connection = AgentConnection(name, settings)
    run: Run[Hyper] = Run(
        name,
        connection,
        codec,
        rank=rank,
        world_size=world_size,
        incarnation=_incarnation(),
        namespace=settings.namespace,
        etcd_patience_s=etcd_patience_s,
        grace_s=settings.grace_s,
        replay=schedule,
        max_restarts=allowed,
        take_over=take_over,
        notice_signals=signals,
    )
    _enter(run, connection, timeout_s, settings)
    if protect_loader_workers:
        children.protect()
    if rank == 0:
        _log_start(run, codec.differences(run._agreement.values) if schedule is None else [])
    return run


def _settings(etcd: str | Sequence[str] | None, namespace: str | None) -> Settings:
    settings = resolve(etcd, namespace=namespace)
    if settings.origin == "instep local":
        log.warning("no etcd is configured: using the one of 'instep local' at %s", settings.endpoints[0])
    return settings


def _enter(run: Run[Any], connection: AgentConnection, timeout_s: float, settings: Settings) -> None:
    """Waits until the run is in a view, and leaves if that fails."""
    try:
        _wait_for_view(run, run._session, connection, timeout_s, settings)
    except BaseException as error:
        run._close(False, error)
        raise
    run._preemption.open()


def _log_start(run: Run[Any], differences: Sequence[str]) -> None:
    name = run.name
    if differences:
        log.warning(
            "run %r trains with values from etcd instead of this script's: %s; to use the script's value, "
            "run 'instep unset %s NAME' before a start",
            name,
            ", ".join(differences),
            name,
        )
    values = ", ".join(f"{key}={format_scalar(value)}" for key, value in run._agreement.values.items()) or "no values"
    log.info("all %d ranks have joined run %r (view %d) with %s", run.world_size, name, run.view, values)


def _wait_for_view(
    run: Run[Any], session: AgentSession, connection: AgentConnection, timeout_s: float, settings: Settings
) -> None:
    started = time.monotonic()
    waiting_for, missing = "the node's agent", tuple[int, ...]()
    say_at = started + SAY_EVERY_S
    while not session.is_joined():
        now = time.monotonic()
        if now - started >= timeout_s:
            raise JoinTimeout(
                f"rank {run.rank} could not join {run.name!r} in {timeout_s:g} s: it waited for {waiting_for} "
                f"(etcd {', '.join(settings.endpoints)}, namespace {settings.namespace})",
                missing=missing,
            )
        if now >= say_at:
            log.warning("rank %d waits for %s (%.0f s)", run.rank, waiting_for, now - started)
            say_at = now + SAY_EVERY_S
        try:
            if not connection.connected:
                connection.wait_connected(timeout_s - (now - started), fail_fast=True)
                session.introduce()
            connection.wait_readable(min(0.5, timeout_s))
            session.replace_stopped_agent()
            messages = connection.receive()
        except ConnectionLost:
            continue
        if connection.starts == 0 and any(_is_of_the_agent(message) for message in messages):
            # Another worker started this agent, maybe with settings that are fixed by now: start another agent.
            connection.drop()
            continue
        for message in messages:
            if isinstance(message, JoinWait):
                waiting_for, missing = message.text, message.missing
                if message.urgent:
                    say_at = 0.0
        session.process(messages, step=0)


def _incarnation() -> str:
    """Distinguishes this process from all others of its rank: there are about 900 million."""
    number = int.from_bytes(os.urandom(8), "big")
    return "".join(_ALPHABET[number // len(_ALPHABET) ** place % len(_ALPHABET)] for place in range(INCARNATION_LENGTH))


def _is_of_the_agent(message: FromAgent) -> bool:
    """True for a failure of the agent's own settings, not of this worker's place in the run."""
    return isinstance(message, Failure) and message.kind in ("settings", "denied")


def _prefers_script(prefer: object, schema: object, replay: object) -> bool:
    if prefer not in ("etcd", "script"):
        raise SettingsError(f'prefer is {prefer!r}: give "etcd" or "script"')
    if prefer == "script" and schema is None:
        raise SettingsError('prefer="script" needs a schema: without one the script declares no values')
    if prefer == "script" and replay is not None:
        raise SettingsError('prefer="script" and replay= exclude each other: a replay takes its values from its file')
    return prefer == "script"


def _max_restarts(given: int | None, environ: Mapping[str, str]) -> int | None:
    if isinstance(given, bool) or not isinstance(given, int | None):
        raise SettingsError(f"max_restarts is {given!r}: it must be a whole number")
    allowed = given if given is not None else number(environ, "INSTEP_MAX_RESTARTS")
    if allowed is not None and allowed < 0:
        raise SettingsError(f"max_restarts is {allowed}: give 0 or more, or nothing for no limit")
    return allowed
