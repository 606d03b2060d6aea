"""The process beside torchrun's agent that notifies the other nodes at once when the agent is killed.

It runs this file by its path in a bare interpreter. While the agent lives, it loads nothing of Instep or other
packages, so it takes about 4 MB; `-P` keeps this folder off the module path, and `-S` skips `site`.

Limit: what ends the whole container or node ends the guard too; the others then notice when the lease expires. It does
not touch the agent's workers: torchrun starts them in their own sessions, and they exit when their peers are gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys

TYPE_CHECKING = False  # `typing` would need a megabyte
if TYPE_CHECKING:
    from instep.etcd import Client
    from instep.rendezvous.keys import RendezvousKeys
    from instep.settings import Settings

PIDFD_OPEN = 434
"""The number of the system call, the same on all Linux architectures that torch supports."""
DISMISS_S = 1.0
LONGEST_S = 60.0
SPARE_S = 10
"""Time for loading the client, added to the time limit for the write; then the kernel ends the guard."""


class Guard:
    """Starts the guard process.

    Promise: until `dismiss`, if this process ends for any reason, the other nodes learn about half a second later that
    `node` is gone for good. Limit: while etcd cannot be reached, the guard retries for the length of the lease, and 60
    s at most. Raises OSError if it cannot be started.
    """

    def __init__(self, settings: Settings, keys: RendezvousKeys, node: str, ttl_s: float) -> None:
        import json
        import subprocess

        from instep.runtime import process_environment

        path = [str(entry) for entry in sys.path]
        facts = {"path": path, "settings": settings.to_json(), "run": keys.run, "node": node, "ttl_s": ttl_s}
        agent = _pidfd_of_this_process()
        try:
            self._process = subprocess.Popen(
                [sys.executable or "", "-P", "-S", __file__, str(agent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,  # not inherited: `torchrun | tee` must end when torchrun does
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(agent,),
                env=process_environment(os.environ),
            )
        finally:
            os.close(agent)
        self._node = node
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(facts).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.dismiss()
            raise

    def __repr__(self) -> str:
        return f"Guard({self._process.pid} of {self._node})"

    def dismiss(self) -> bool:
        """Stops it without a write to etcd, usually in a few milliseconds, by a signal after one second. Returns
        whether it exited by itself."""
        from contextlib import suppress
        from subprocess import TimeoutExpired

        try:
            self._process.communicate(b"goodbye", DISMISS_S)
        except TimeoutExpired:
            self._process.kill()
            with suppress(TimeoutExpired):  # in uninterruptible sleep: it ends when the kernel releases it
                self._process.wait(DISMISS_S)
        return self._process.returncode == 0


def _pidfd_of_this_process() -> int:
    """Unlike a pid, it is never reused for another process; unlike a pipe, no child can hold it open."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(os.getpid())
    import ctypes  # a Python that was built for an older kernel lacks the function

    libc = ctypes.CDLL(None, use_errno=True)
    number: int = libc.syscall(PIDFD_OPEN, os.getpid(), 0)
    if number < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    return number


# -- the process ----------------------------------------------------------------------------------------------------


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # signals to the whole job are for the agent
        signal.signal(number, signal.SIG_IGN)
    facts = b""
    while b"\n" not in facts:
        part = os.read(0, select.PIPE_BUF)
        if not part:
            return
        facts += part
    facts, _, dismissed = facts.partition(b"\n")
    if not dismissed and _agent_dies(int(sys.argv[1])):
        _report(facts)


def _agent_dies(agent: int) -> bool:
    """Waits until the agent ends. False if it dismissed the guard first."""
    watched = select.poll()
    watched.register(0, select.POLLIN)
    watched.register(agent, select.POLLIN)
    while True:
        ready = [number for number, _ in watched.poll()]
        if 0 not in ready:
            return True
        if os.read(0, 1):
            return False
        watched.unregister(0)  # closed, usually because the agent died


def _report(text: bytes) -> None:
    import asyncio
    import json

    facts = json.loads(text)
    limit_s = min(facts["ttl_s"], LONGEST_S)
    signal.alarm(round(limit_s) + SPARE_S)
    sys.path[:] = facts["path"]
    from instep.connect import open_client
    from instep.recipes.retry import retry_until_done
    from instep.rendezvous.keys import RendezvousKeys
    from instep.settings import Settings

    settings = Settings.from_json(facts["settings"])
    keys, node = RendezvousKeys(settings.namespace, facts["run"]), facts["node"]

    async def report() -> None:
        async with asyncio.timeout(limit_s), open_client(settings) as client:
            await retry_until_done(lambda: _write_departure(client, keys, node), f"the node {node}")

    asyncio.run(report())


async def _write_departure(client: Client, keys: RendezvousKeys, node: str) -> bool:
    """Writes the departure. Also revokes the node's leases: another node then coordinates, and late writes of the dead
    node fail.

    Node names are random per process, so no key of another node matches.
    """
    from instep.etcd import Op
    from instep.rendezvous.records import Departure

    registration = f"{keys.nodes}{node}"
    held = [item for item in (await client.range(keys.root)).kvs if item.key == registration or item.text == node]
    departure = Op.put(keys.gone_of(node), Departure(by="guard").encode())
    await client.txn([], [departure, Op.delete(registration)])
    for lease in {item.lease for item in held} - {0}:
        await client.lease_revoke(lease)
    return True


if __name__ == "__main__":
    main()
