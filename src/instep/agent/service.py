"""The agent as a process: its log, its socket, its client, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from logging.handlers import RotatingFileHandler
from pathlib import Path

from instep.agent.connection import Connection
from instep.agent.name import keep_node_name
from instep.agent.node import Node
from instep.agent.roster import RosterFile
from instep.agent.server import Server
from instep.coordination.connect import open_client
from instep.coordination.keys import Keys
from instep.errors import EtcdDenied, EtcdError, InstepError, SettingsError
from instep.runtime import RuntimeFolder
from instep.settings import Settings
from instep.tasks import first_of
from instep.wire import Message

log = logging.getLogger("instep")

LOG_BYTES = 1024 * 1024
FIRST_WORKER_S = 5.0
LINGER_S = 0.2
"""How long an agent that cannot work stays once it has said so: not long, or it would refuse with settings that have
been mended meanwhile."""


def serve(folder_path: str, run: str, settings_text: str, node: str) -> int:
    """Runs one agent to its end and returns the process's exit code. `node` is the name that it speaks for."""
    folder = RuntimeFolder(Path(folder_path))
    _set_up_log(folder)
    os.chdir("/")
    try:
        asyncio.run(_serve(folder, run, Settings.from_json(settings_text), node))
    except Exception:
        log.exception("the agent failed")
        return 1
    return 0


async def _serve(folder: RuntimeFolder, run: str, settings: Settings, name: str) -> None:
    log.info("agent %d of run %s starts with %r", os.getpid(), run, settings)
    try:
        client = open_client(settings)
    except InstepError as error:
        await _refuse_everybody(folder, error)
        return
    async with client:
        keys, roster = Keys(settings.namespace, run), RosterFile(folder.roster)
        node = Node(client, keys, name, settings.ttl_s, roster, stall_timeout_s=settings.stall_timeout_s)
        keep_node_name(folder, name)
        server = Server(folder.socket, node.on_message, node.on_died)
        node.on_empty, node.on_tick = server.stop_accepting, server.stay_reachable
        server.start()
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, stopping.set)
        loop.add_signal_handler(signal.SIGTERM, _on_sigterm, node, stopping)
        try:
            await first_of(node.run(), stopping.wait())
            if stopping.is_set():
                log.warning("the agent was told to stop")
        except InstepError as error:
            log.error("%s", error)
            node.fail_all(error, _kind(error))
            await asyncio.sleep(LINGER_S)
        finally:
            server.close()
    log.info("agent %d ends", os.getpid())


def _on_sigterm(node: Node, stopping: asyncio.Event) -> None:
    """A scheduler that tells every process of a job to end means the ranks. They need their agent to end well, and it
    goes with the last of them."""
    if node.serves:
        log.info("told to end (SIGTERM): that is up to the workers")
    else:
        stopping.set()


async def _refuse_everybody(folder: RuntimeFolder, error: InstepError) -> None:
    """Settings that cannot work: whoever comes hears so."""
    log.error("%s", error)

    told = asyncio.Event()

    def refuse(connection: Connection, message: Message) -> None:
        connection.send({"t": "failure", "kind": _kind(error), "text": str(error)})
        told.set()

    server = Server(folder.socket, refuse, lambda connection: None)
    server.start()
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


def _set_up_log(folder: RuntimeFolder) -> None:
    handler = RotatingFileHandler(folder.log, maxBytes=LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    level = os.environ.get("INSTEP_AGENT_LOG", "INFO").upper()
    log.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
