"""The agent as a process: its log, its socket, its etcd client, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
from logging.handlers import RotatingFileHandler
from pathlib import Path

from instep.agent.connection import WorkerConnection
from instep.agent.handover import LeaseFile, note_end, note_start, notify_starter, release_starter
from instep.agent.name import NodeName, NodeNameTaken, forget_node_name, keep_node_name
from instep.agent.node import Node
from instep.agent.persisted_workers import PersistedWorkersFile
from instep.agent.server import Server
from instep.connect import open_client
from instep.errors import EtcdDenied, EtcdError, InstepError, SettingsError
from instep.protocol.keys import Keys
from instep.runtime import RuntimeFolder
from instep.settings import Settings
from instep.system_errors import explained
from instep.tasks import first_of
from instep.wire.messages import Failure, FromWorker

log = logging.getLogger("instep")

LOG_BYTES = 1024 * 1024
DESCRIPTORS = 65536
FEWEST_DESCRIPTORS = 20
FIRST_WORKER_S = 5.0
LINGER_S = 0.2
"""How long an agent that cannot work stays after it has reported that. Short: its settings may be fixed meanwhile."""


def serve(folder_path: str, run: str, settings_text: str, name: NodeName) -> int:
    """Runs one agent and returns the exit code of the process. `name` is the node's name."""
    folder = RuntimeFolder(Path(folder_path))
    _set_up_log(folder)
    os.chdir("/")
    former = note_start(folder, os.getpid())
    if former is not None:
        log.info("how this node's last agent ended: %s", former)
    try:
        _raise_descriptor_limit()
        code, why = asyncio.run(_serve(folder, run, Settings.from_json(settings_text), name))
    except Exception as error:
        log.exception("the agent failed")
        note_end(folder, f"agent {os.getpid()} failed: {type(error).__name__}: {error}")
        notify_starter(error)
        return 1
    log.info("agent %d ends: %s", os.getpid(), why)
    note_end(folder, f"agent {os.getpid()} ended: {why}")
    return code


async def _serve(folder: RuntimeFolder, run: str, settings: Settings, name: NodeName) -> tuple[int, str]:
    """The exit code, and why the agent ends. The code is 0 unless workers that train need another agent; then the
    supervisor starts one."""
    log.info("agent %d of run %s starts with %r", os.getpid(), run, settings)
    try:
        client = open_client(settings)
    except InstepError as error:
        await _refuse_everybody(folder, error)
        return int(PersistedWorkersFile(folder).has_living()), str(error)
    async with client:
        keys, persisted_workers, leases = Keys(settings.namespace, run), PersistedWorkersFile(folder), LeaseFile(folder)
        stall_s = settings.stall_timeout_s
        node = Node(client, keys, name, settings.ttl_s, persisted_workers, leases, stall_timeout_s=stall_s)
        _keep_node_name(folder, name)
        server = Server(folder.socket, node.on_message, node.on_died)
        node.on_empty, node.on_tick = server.stop_accepting, server.stay_reachable
        node.problem_here = lambda: server.problem
        server.start()
        release_starter()
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, stopping.set)
        loop.add_signal_handler(signal.SIGTERM, _on_sigterm, node, stopping)
        try:
            await first_of(node.run(), stopping.wait())
            return 0, "it was signaled to stop" if stopping.is_set() else node.why_ended
        except NodeNameTaken as error:
            log.warning("%s: this node takes another name; its workers start the next agent", error)
            forget_node_name(folder)
            return 0, str(error)
        except InstepError as error:
            log.error("%s", error)
            node.fail_all(error, _kind(error))
            await asyncio.sleep(LINGER_S)
            return int(node.trains), str(error)
        finally:
            server.close()


def _on_sigterm(node: Node, stopping: asyncio.Event) -> None:
    """A scheduler that signals all processes of a job means the ranks. They need their agent until they have ended,
    so it ends with the last of them."""
    if node.serves:
        log.info("SIGTERM received: this agent ends when its last worker has ended")
    else:
        stopping.set()


async def _refuse_everybody(folder: RuntimeFolder, error: InstepError) -> None:
    """Sends each worker that connects the reason why these settings cannot work."""
    log.error("%s", error)

    told = asyncio.Event()

    def refuse(connection: WorkerConnection, message: FromWorker) -> None:
        connection.send(Failure(_kind(error), str(error)))
        told.set()

    server = Server(folder.socket, refuse, lambda connection: None)
    server.start()
    release_starter()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_WORKER_S):
            await told.wait()
    await asyncio.sleep(LINGER_S)
    server.close()


def _kind(error: InstepError) -> str:
    if isinstance(error, EtcdDenied):
        return "denied"
    if isinstance(error, SettingsError):
        return "settings"
    return "etcd" if isinstance(error, EtcdError) else "agent"


def _keep_node_name(folder: RuntimeFolder, name: NodeName) -> None:
    try:
        keep_node_name(folder, name)
    except OSError as error:
        log.warning(
            "the node's name cannot be saved, so a replacement agent may use another name: %s",
            explained(error),
        )


def _raise_descriptor_limit() -> None:
    """Raises the limit of file descriptors as far as the system allows: three per worker, besides those of the
    client. Raises OSError if not even the client could work, because grpc would abort the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft != resource.RLIM_INFINITY and soft < FEWEST_DESCRIPTORS:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class _LogFile(RotatingFileHandler):
    """Loses log lines while the disk is full, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name that logging calls
        pass


def _set_up_log(folder: RuntimeFolder) -> None:
    try:
        handler: logging.Handler = _LogFile(folder.log, maxBytes=LOG_BYTES, backupCount=1)
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    level = os.environ.get("INSTEP_AGENT_LOG", "INFO").upper()
    log.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
