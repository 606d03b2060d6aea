"""Refusals of the operating system, as sentences."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instep.errors import SettingsError
from instep.runtime import RuntimeFolder
from instep.system_errors import OUT_OF_RESOURCES, explained

ELSEWHERE = "set X to another folder"


def error_of(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space or inodes on that file system, or set X to another folder"),
        (errno.EDQUOT, "free some of the quota on that file system, or set X to another folder"),
        (errno.EROFS, "set X to another folder"),
        (errno.EACCES, "set X to another folder"),
        (errno.EMFILE, "raise the limit of open files of a process (ulimit -n), which is "),
        (errno.ENFILE, "raise the machine's limit of open files (sysctl fs.file-max)"),
        (errno.EAGAIN, "raise the limit of processes (ulimit -u, or pids.max of the container)"),
        (errno.ENOMEM, "free memory, or raise the memory limit of the container"),
    ],
)
def test_a_refusal_names_its_reason_and_its_fix(number: int, fix: str) -> None:
    text = explained(error_of(number, "/somewhere"), ELSEWHERE)
    assert text.startswith(f"{os.strerror(number)} (/somewhere): {fix}")


def test_without_a_fix_only_the_reason_is_given() -> None:
    assert explained(error_of(errno.EIO)) == os.strerror(errno.EIO)
    assert explained(OSError("of no number")) == "of no number"


def test_temporary_limits_are_distinguished_from_permanent_errors() -> None:
    assert {errno.EMFILE, errno.ENFILE} <= OUT_OF_RESOURCES
    assert errno.EINVAL not in OUT_OF_RESOURCES


def test_a_folder_that_supports_no_lock_is_an_error_with_the_reason(runtime_dir: Path) -> None:
    folder = RuntimeFolder(runtime_dir / "run")
    (folder.path / "agent.lock").mkdir()
    with pytest.raises(SettingsError, match=r"cannot be used: Is a directory .*: set INSTEP_RUNTIME_DIR to another"):
        folder.claim()


SERVES = """
import asyncio, logging, resource, sys
from pathlib import Path
from instep.agent.server import Server

async def main():
    said = []
    logging.getLogger("instep").addHandler(h := logging.Handler())
    h.emit = said.append
    server = Server(Path(sys.argv[1]), lambda connection, message: None, lambda connection: None)
    server.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
    print("serves", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print(len(said), len(server.connections), server.problem, flush=True)

asyncio.run(main())
"""


def test_an_agent_without_descriptors_refuses_with_the_reason_and_serves_again_when_it_has_some(tmp_path: Path) -> None:
    """It reserves one descriptor for that, does not use a whole core, and does not fill its log."""
    import socket
    import tempfile

    from instep.wire.frames import Decoder, from_agent
    from instep.wire.messages import Failure

    def came(path: str) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(path)
        return client

    def refusal(client: socket.socket) -> str | None:
        """The reason of a refusal; None for a worker that is served and receives nothing."""
        client.settimeout(1)
        try:
            (message,) = Decoder(from_agent).feed(client.recv(65536))
            assert isinstance(message, Failure)
            return message.text
        except TimeoutError:
            return None

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/s"
        command = [sys.executable, "-c", SERVES, path, "20"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
            assert agent.stdin is not None
            assert agent.stdout is not None
            try:
                assert agent.stdout.readline() == "serves\n"
                clients = [came(path) for _ in range(30)]
                heard = [refusal(client) for client in clients]
                refused = [text for text in heard if text is not None]
                assert len(refused) > 20
                assert all("Too many open files: raise the limit of open files" in text for text in refused)
                for client in clients:
                    client.close()
                with came(path) as late:
                    assert refusal(late) is None
                agent.stdin.write("\n")
                agent.stdin.flush()
                lines, connections, problem = agent.stdout.readline().split(" ", 2)
                assert (int(lines), int(connections) >= 1) == (1, True)
                assert problem.startswith("the agent of this node has refused a process: Too many open files")
            finally:
                agent.kill()
