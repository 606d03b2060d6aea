"""The process beside torchrun's agent that tells the others at once when the agent has been killed.

It is this file, run by its path in a bare interpreter: while the agent lives it loads nothing of Instep or of others,
so that it takes about 4 MB of its own; `-P` keeps this folder off the module path, and `-S` what `site` would load.

Limit: what ends the whole container or node ends the guard too: then the lease's end tells. It leaves the agent's
workers alone: torchrun starts them in sessions of their own, and they end by themselves when their peers have gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys

TYPE_CHECKING = False  # `typing` would take a megabyte
if TYPE_CHECKING:
    from instep.coordination.rendezvous.keys import RendezvousKeys
    from instep.etcd import Client
    from instep.settings import Settings

PIDFD_OPEN = 434
"""The system call's number, the same on all of Linux's processors that torch runs on."""
DISMISS_S = 1.0
LONGEST_S = 60.0
SPARE_S = 10
"""For loading the client, beyond the seconds in which etcd is to be told; then the kernel ends the guard."""


class Guard:
    """Promise: from its making until `dismiss`, the end of this process by whatever cause makes node `node` gone for
    good, about half a second later if etcd can be reached. While etcd cannot, that is tried for the length of the lease
    and 60 s at most.

    Raises OSError when it cannot be started.
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
                stdout=subprocess.DEVNULL,  # never ours: `torchrun | tee` ends when torchrun does
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
        """Ends it without a word to etcd: in a few milliseconds as a rule, and in two seconds at most, by a signal if
        it does not listen. Whether it has."""
        from contextlib import suppress
        from subprocess import TimeoutExpired

        try:
            self._process.communicate(b"goodbye", DISMISS_S)
        except TimeoutExpired:
            self._process.kill()
            with suppress(TimeoutExpired):  # the kernel holds it: it ends when that lets go
                self._process.wait(DISMISS_S)
        return self._process.returncode == 0


def _pidfd_of_this_process() -> int:
    """Unlike a pid it never means another process, and unlike a pipe no child can hold it open."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(os.getpid())
    import ctypes  # a Python built for an older kernel lacks the function

    libc = ctypes.CDLL(None, use_errno=True)
    number: int = libc.syscall(PIDFD_OPEN, os.getpid(), 0)
    if number < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    return number


# -- the process ----------------------------------------------------------------------------------------------------


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # told to all processes, they are the agent's to obey
        signal.signal(number, signal.SIG_IGN)
    facts = b""
    while b"\n" not in facts:
        part = os.read(0, select.PIPE_BUF)
        if not part:
            return
        facts += part
    facts, _, goodbye = facts.partition(b"\n")
    if not goodbye and _dies(int(sys.argv[1])):
        _tell(facts)


def _dies(agent: int) -> bool:
    """Waits for the agent's end; False when it has said goodbye."""
    watched = select.poll()
    watched.register(0, select.POLLIN)
    watched.register(agent, select.POLLIN)
    while True:
        ready = [number for number, _ in watched.poll()]
        if 0 not in ready:
            return True
        if os.read(0, 1):
            return False
        watched.unregister(0)  # closed, most likely by its death


def _tell(text: bytes) -> None:
    import asyncio
    import json

    facts = json.loads(text)
    limit_s = min(facts["ttl_s"], LONGEST_S)
    signal.alarm(round(limit_s) + SPARE_S)
    sys.path[:] = facts["path"]
    from instep.coordination.connect import open_client
    from instep.coordination.rendezvous.keys import RendezvousKeys
    from instep.coordination.retry import retry_until_done
    from instep.settings import Settings

    settings = Settings.from_json(facts["settings"])
    keys, node = RendezvousKeys(settings.namespace, facts["run"]), facts["node"]

    async def tell() -> None:
        async with asyncio.timeout(limit_s), open_client(settings) as client:
            await retry_until_done(lambda: _is_told(client, keys, node), f"the node {node}")

    asyncio.run(tell())


async def _is_told(client: Client, keys: RendezvousKeys, node: str) -> bool:
    """Ends the node's leases too, so that another node coordinates, and nothing that the node has sent comes late.

    Names are drawn at random by each process: no other node's keys are met.
    """
    from instep.coordination.rendezvous.records import Departure
    from instep.etcd import Op

    registration = f"{keys.nodes}{node}"
    held = [item for item in (await client.range(keys.root)).kvs if item.key == registration or item.text == node]
    departure = Op.put(keys.gone_of(node), Departure(by="guard").encode())
    await client.txn([], [departure, Op.delete(registration)])
    for lease in {item.lease for item in held} - {0}:
        await client.lease_revoke(lease)
    return True


if __name__ == "__main__":
    main()
