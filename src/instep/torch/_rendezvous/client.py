"""The etcd side of torchrun's agent: a thread with a client, its node in the rendezvous, and its guard process."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import time
from typing import Final

from instep.connect import open_client
from instep.errors import EtcdUnavailable, SettingsError
from instep.etcd import Client, Status
from instep.recipes.retry import UNAVAILABLE, Retry
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Cause, Round

from .address import await_own_address
from .guard import Guard
from .loop_thread import LoopThread
from .options import RendezvousOptions
from .wait_log import log_while_waiting

log = logging.getLogger("instep")

ATTEMPT_S: Final = 3.0
CLUSTERS_S: Final = 1.0


class RendezvousClient:
    """Registers this node in the rendezvous, from its creation to `close` or the end of the process.

    Promise: the other nodes know whether `node` is there, however this process ends. Creating it raises the client's
    error if etcd does not answer within connect_timeout or refuses the connection, and SettingsError if `host` does not
    lead to this machine. For one thread.
    """

    def __init__(self, options: RendezvousOptions, host: str) -> None:
        self._options = options
        self._host = host
        self._pid = os.getpid()
        self._loop = LoopThread(f"instep-rendezvous-{options.keys.run}")
        self._client: Client | None = None
        self._node: RendezvousNode | None = None
        self._guard: Guard | None = None
        self._closed = False
        atexit.register(self.close)
        try:
            self._loop.run(self._connect())
            await_own_address(host, options.connect_s)
            self._node = self._loop.run(self._enter())
        except BaseException:
            self.close()
            raise
        self._guard = self._start_guard()

    def __repr__(self) -> str:
        return f"RendezvousClient({'closed' if self._closed else self._node!r})"

    @property
    def node(self) -> RendezvousNode:
        assert self._node is not None
        return self._node

    def seat(self, address: Address, cause: Cause, limit_s: float) -> Round:
        """As RendezvousNode.seat. Meanwhile, the log says what this node waits for."""
        return self._loop.run(self._take_seat(address, cause, limit_s))

    def finish(self) -> None:
        """Closes the run for all nodes, within close_timeout. Does nothing on a node that never had a seat: it must not
        end the run of the others. Raises EtcdUnavailable."""
        if not self._closed and self.node.was_seated:
            self._loop.run(self._finish())

    def close(self) -> None:
        """Leaves the rendezvous: the others need not wait for the lease to expire. Does nothing in a forked child."""
        atexit.unregister(self.close)
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        try:
            self._loop.run(self._leave())
        finally:
            self._loop.stop()
            if self._guard is not None:
                self._guard.dismiss()

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _contact_s(self) -> float:
        return min(self._options.connect_s, self._options.join_s)

    async def _connect(self) -> None:
        self._client = open_client(self._options.settings)
        await wait_for_etcd(self._client, self._options.keys, self._contact_s)

    async def _enter(self) -> RendezvousNode:
        """Registers the node, and retries if etcd fails after its first answer."""
        options = self._options

        async def attempt() -> RendezvousNode:
            node = RendezvousNode(
                self._connected_client,
                options.keys,
                options.limits,
                host=self._host,
                pid=self._pid,
                ttl_s=options.ttl_s,
                last_call_s=options.last_call_s,
            )
            return await node.__aenter__()

        return await Retry(UNAVAILABLE, "the rendezvous waits for etcd", timeout_s=self._contact_s).run(attempt)

    @property
    def _connected_client(self) -> Client:
        assert self._client is not None
        return self._client

    def _start_guard(self) -> Guard | None:
        options = self._options
        try:
            return Guard(options.settings, options.keys, self.node.name, options.ttl_s)
        except OSError as error:
            log.warning(
                "this agent has no guard process: if it is killed, the others notice only after %d s (%s)",
                options.ttl_s,
                error,
            )
            return None

    async def _take_seat(self, address: Address, cause: Cause, limit_s: float) -> Round:
        options = self._options
        seat = self.node.seat(address, cause=cause, timeout_s=limit_s)
        return await log_while_waiting(
            seat, self._connected_client, options.keys, self.node, options.limits, last_call_s=options.last_call_s
        )

    async def _finish(self) -> None:
        close_s = self._options.close_s
        try:
            async with asyncio.timeout(close_s):
                await Retry(UNAVAILABLE, "the end of the run waits for etcd").run(self.node.finish)
        except TimeoutError:
            raise EtcdUnavailable(f"the end of the run was not written to etcd within {close_s:g} s") from None

    async def _leave(self) -> None:
        if self._node is not None:
            await self._node.close()
        if self._client is not None:
            await self._client.close()


async def wait_for_etcd(client: Client, keys: RendezvousKeys, limit_s: float) -> None:
    """Waits up to `limit_s` seconds until etcd answers a read of the run's round.

    Raises EtcdUnavailable after that, EtcdDenied if etcd refuses the client, and SettingsError if the endpoints belong
    to different clusters. Limit: detects different clusters only while all endpoints answer.
    """
    deadline = time.monotonic() + limit_s

    async def attempt() -> None:
        left_s = max(0.1, round(deadline - time.monotonic(), 1))
        await client.get(keys.round, timeout_s=min(ATTEMPT_S, left_s))

    try:
        await Retry(
            UNAVAILABLE, f"etcd does not answer, retrying for {limit_s:g} s (connect_timeout)", timeout_s=limit_s
        ).run(attempt)
    except EtcdUnavailable as error:
        raise EtcdUnavailable(f"etcd did not answer within {limit_s:g} s: {error}") from None
    if client.endpoint_count > 1:
        await _check_one_cluster(client)


async def _check_one_cluster(client: Client) -> None:
    try:
        async with asyncio.timeout(CLUSTERS_S):
            statuses = await client.status(timeout_s=CLUSTERS_S)
    except TimeoutError:
        return
    other = find_other_cluster(statuses)
    if other is not None:
        first, second = other
        raise SettingsError(
            f"{first.endpoint} and {second.endpoint} are members of different etcd clusters ({first.cluster_id:x} and "
            f"{second.cluster_id:x}): use the endpoints of one cluster"
        )


def find_other_cluster(statuses: tuple[Status, ...]) -> tuple[Status, Status] | None:
    """Two members of different clusters, among those that answered; None if there are none."""
    known = [status for status in statuses if status.cluster_id]
    return next(((known[0], status) for status in known if status.cluster_id != known[0].cluster_id), None)
