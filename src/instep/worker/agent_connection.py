"""The worker's end of the socket to its agent. It has no thread: it acts only when the training loop calls it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from instep.errors import AgentError, InstepError
from instep.runtime import RuntimeFolder, process_environment
from instep.settings import Settings
from instep.system_errors import explained
from instep.wire import CANNOT_SERVE
from instep.wire.codec import WireError
from instep.wire.frames import Decoder, create_words, framed, from_agent
from instep.wire.messages import FromAgent, FromWorker, Hello

if TYPE_CHECKING:
    import subprocess

log = logging.getLogger("instep")

SILENCE_S = 10.0
LOOKS = 3
APART_S = 1.0
"""A look that follows another one sooner than this does not count: the agent does not write its beat more often."""


START_TIMEOUT_S: Final = 20.0
RETRY_S: Final = 0.02
MAX_OUTBOX_BYTES: Final = 1024 * 1024
MAX_RESTART_PAUSE_S: Final = 30.0
LOG_TAIL_CHARACTERS: Final = 600


@dataclass(slots=True)
class LivenessDetector:
    """An agent counts as stopped after several looks at the same beat over `SILENCE_S` seconds. One look is not
    enough: after a machine has slept, the process that wakes first sees an old beat."""

    _beat: float = -1.0
    _since: float = 0.0
    _looks: int = 0
    _counted: float = 0.0

    def is_stopped(self, beat: float, now: float) -> bool:
        """`now` in seconds on the monotonic clock. Starts over after it has returned True, for the next agent."""
        if beat != self._beat:
            self._beat, self._since, self._looks, self._counted = beat, now, 0, now
            return False
        if now - self._counted >= APART_S:
            self._looks, self._counted = self._looks + 1, now
        if self._looks < LOOKS or now - self._since < SILENCE_S:
            return False
        self._beat = -1.0
        return True


class ConnectionLost(Exception):
    """The agent is gone, or has sent what cannot be read: connect again."""


class AgentConnection:
    """A connection that may be lost and connected again; then the caller introduces itself again.

    A method waits only if its name says so.
    """

    def __init__(self, run: str, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._settings = settings
        self._clock = clock
        self._folder = RuntimeFolder.of(run, settings)
        self._socket: socket.socket | None = None
        self._decoder = Decoder(from_agent)
        self._outbox = bytearray()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self._start_pause_s = 0.5
        self._reasons: IO[bytes] | None = None
        """The output of the agent that this worker has started: why it cannot serve."""
        try:
            self.words, self._descriptor = create_words()
        except OSError as error:
            raise AgentError(f"this process cannot share memory with the node's agent: {explained(error)}") from None
        self.starts = 0
        self.node = ""
        """The name of the node as its agent has sent it. The next agent must use the same name."""
        self._problem = ""

    def __repr__(self) -> str:
        return f"AgentConnection({self._folder.socket}, {'connected' if self.connected else 'apart'})"

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def wait_connected(self, timeout_s: float, *, fail_fast: bool = False) -> None:
        """Connects, and starts an agent if there is none. Raises AgentError with the agent's reason if that fails;
        with `fail_fast` as soon as the reason is known."""
        deadline = self._clock() + min(timeout_s, START_TIMEOUT_S)
        self._problem = ""
        while not self.try_connect():
            if fail_fast and self._problem:
                raise AgentError(f"this node has no agent, so the run cannot be joined: {self._problem}")
            if self._clock() >= deadline:
                problem = self._problem or f"its log ends: {log_tail(self._folder)}"
                raise AgentError(f"the node's agent did not answer on {self._folder.socket}; {problem}")
            time.sleep(RETRY_S)

    def try_connect(self) -> bool:
        """Makes one attempt: connects, or starts an agent if none is starting. True when connected."""
        self._reap()
        if self._socket is not None:
            return True
        try:
            attempt = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            attempt.setblocking(False)  # before it connects: a stopped agent with a full backlog must not block
        except OSError as error:
            self._problem = f"this process cannot connect to it: {explained(error)}"
            return False
        try:
            attempt.connect(str(self._folder.socket))
        except OSError:
            attempt.close()
            self._start_if_due()
            return False
        self._socket = attempt
        self._decoder, self._outbox = Decoder(from_agent), bytearray()
        self._problem = ""
        self._close_reasons()
        return True

    def introduce(self, hello: Hello) -> None:
        """Sends the first message of a connection, with the descriptor of the shared words."""
        assert self._socket is not None
        data = framed(hello)
        try:
            sent = socket.send_fds(self._socket, [data], [self._descriptor])
        except OSError as error:
            self.drop()
            raise ConnectionLost(str(error)) from None
        self._outbox += data[sent:]
        self.flush()

    def send(self, message: FromWorker, *, droppable: bool = False) -> None:
        """Queues a message and sends what the socket accepts. Skips a droppable message while others are queued."""
        if droppable and (self._outbox or not self.connected):
            return
        self._outbox += framed(message)
        if len(self._outbox) > MAX_OUTBOX_BYTES:
            self.drop()
            raise ConnectionLost("the agent takes no more messages")
        self.flush()

    def flush(self) -> None:
        if self._socket is None:
            raise ConnectionLost("not connected")
        while self._outbox:
            try:
                sent = self._socket.send(self._outbox, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                self.drop()
                raise ConnectionLost(str(error)) from None
            del self._outbox[:sent]

    def receive(self) -> list[FromAgent]:
        """Returns all messages that have arrived. Raises ConnectionLost if the agent is gone."""
        if self._socket is None:
            raise ConnectionLost("not connected")
        messages: list[FromAgent] = []
        while True:
            try:
                data = self._socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            except OSError as error:
                data, reason = b"", str(error)
            else:
                reason = "the agent closed the connection"
            if not data:
                self.drop()
                if messages:
                    return messages  # its last messages count; the next call raises
                raise ConnectionLost(reason)
            try:
                messages.extend(self._decoder.feed(data))
            except WireError as error:
                self.drop()
                raise ConnectionLost(str(error)) from None

    def wait_message(self, kind: type[FromAgent], timeout_s: float) -> bool:
        """Waits for a message of that type and discards others. False if none arrived in time."""
        deadline = self._clock() + timeout_s
        while (left_s := deadline - self._clock()) > 0:
            self.wait_readable(left_s)
            if any(isinstance(message, kind) for message in self.receive()):
                return True
        return False

    def wait_readable(self, timeout_s: float) -> None:
        """Waits at most `timeout_s` seconds until a message arrives or the agent is gone."""
        if self._socket is None:
            raise ConnectionLost("not connected")
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        poller.poll(max(0.0, timeout_s) * 1000)
        self.flush()

    def kill_agent(self) -> None:
        """Kills an agent that is connected but silent (stopped, or stuck), because a new one can replace it."""
        if self._socket is None:
            return
        pid = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self.drop()
        if pid > 1:
            # It may have ended already, or be in another container: nothing more to do.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Releases everything. In a forked child this closes only the child's copies."""
        self.drop()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self.words.close()
        self._reap()
        self._close_reasons()

    def _start_if_due(self) -> None:
        now = self._clock()
        if now < self._start_at:
            return
        try:
            lock = self._folder.claim()
            if lock is None:
                return  # another agent is starting, or is about to end
            try:
                self._launcher = start_agent(self._folder, self._run, self._settings, lock, self.node)
                self._close_reasons()
                self._reasons = self._launcher.stdout
            finally:
                os.close(lock)
        except (OSError, InstepError) as error:
            self._problem = str(error)
            log.warning("the node's agent cannot be started: %s", error)
        else:
            self.starts += 1
        self._start_at = now + self._start_pause_s
        self._start_pause_s = min(MAX_RESTART_PAUSE_S, self._start_pause_s * 2)

    def reset_restart_delay(self) -> None:
        """The agent works: if another start is needed, it is not delayed."""
        self._start_pause_s = 0.5

    def _reap(self) -> None:
        if self._launcher is not None and self._launcher.poll() is not None:
            self._launcher = None
        if self._reasons is not None:
            said = self._reasons.read()  # does not wait: None if there is no output
            lines = said.decode(errors="replace").splitlines() if said else []
            self._problem = next((line for line in lines if line.startswith(CANNOT_SERVE)), self._problem)
            if said == b"":
                self._close_reasons()

    def _close_reasons(self) -> None:
        if self._reasons is not None:
            self._reasons.close()
            self._reasons = None


def start_agent(folder: RuntimeFolder, run: str, settings: Settings, lock: int, node: str) -> subprocess.Popen[bytes]:
    """Starts an agent and returns its launcher, which ends at once: the agent itself is nobody's child.

    `node` is the node name that it must use, empty if unknown. The agent inherits `lock`, so there is never a second
    one. An agent that cannot serve writes the reason as one line to the launcher's `stdout`, a non-blocking pipe,
    even if the folder has no space for a log. Raises AgentError if no process can be started.
    """
    import subprocess  # 5 ms that `import instep` saves: one worker per node needs it

    try:
        with _log_of(folder) as log:
            launcher = subprocess.Popen(
                [sys.executable, "-P", "-m", "instep.agent", str(folder.path), run, str(lock), node],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
                env=_environment(),
            )
    except OSError as error:
        raise AgentError(f"the node's agent could not be started with {sys.executable}: {explained(error)}") from None
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    os.set_blocking(launcher.stdout.fileno(), False)
    try:
        launcher.stdin.write(settings.to_json().encode())
        launcher.stdin.close()
    except BrokenPipeError:
        pass  # it ended at once; the caller's timeout shows its log
    return launcher


def _log_of(folder: RuntimeFolder) -> IO[bytes]:
    """An agent without a log is better than no agent."""
    try:
        return folder.log.open("ab")
    except OSError:
        return open(os.devnull, "ab")


def log_tail(folder: RuntimeFolder) -> str:
    """The end of the agent's log, for an error message."""
    try:
        text = folder.log.read_text(errors="replace")
    except OSError:
        return "it left no log"
    return text[-LOG_TAIL_CHARACTERS:].strip() or "its log is empty"


def _environment() -> dict[str, str]:
    environment = {**process_environment(os.environ), "MALLOC_ARENA_MAX": "2"}
    parent = Path(__file__).resolve().parents[2]
    if parent.name not in ("site-packages", "dist-packages"):
        # The script may have a checkout on its own path: the agent must use the same one.
        known = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
        environment["PYTHONPATH"] = os.pathsep.join([str(parent), *known])
    return environment
