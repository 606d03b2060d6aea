"""The handler behind `torchrun --rdzv-backend=etcd3`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from instep.errors import InstepError, JoinTimeout, RunClosed, SettingsError
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Cause, Round

from .address import address_of_this_node
from .client import RendezvousClient
from .errors import error_for_torchrun
from .options import RendezvousOptions, options_of, variables_of
from .round_store import AgentsStore, await_all_nodes, connect_store, open_store

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # re-exported, but not by name
    from torch.distributed.elastic.rendezvous import RendezvousParameters

log = logging.getLogger("instep")

BACKEND: Final = "etcd3"
TOGETHER_S: Final = 0.25
"""Longer than torchrun's poll interval, which is 0.1 s by default."""
MOST_UNREACHED: Final = 3
WHY: Final[Mapping[Cause, str]] = {
    "new": "the first",
    "failure": "workers had failed",
    "membership": "nodes came or went",
}
ARRIVAL_S: Final = 5.0
"""Beyond the length of a lease: a node that has not arrived by then is dead, or cannot reach the store."""


def create_handler(params: RendezvousParameters) -> Handler:
    """Creates the handler, for torch's registry. Raises an error with a one-line message for unusable parameters."""
    _prefix_log_lines()
    try:
        handler = Handler(options_of(params))
    except SettingsError as error:
        raise error_for_torchrun(error) from None
    for variable, value in variables_of(params).items():
        os.environ.setdefault(variable, value)  # for the scripts, unless they are configured otherwise
    return handler


def _prefix_log_lines() -> None:
    """Without configured logging, Python prints warnings without a source, between lines of torchrun and the ranks."""
    if not log.handlers and not logging.getLogger().handlers:
        prefixed = logging.StreamHandler()
        prefixed.setFormatter(logging.Formatter("instep: %(message)s"))
        log.addHandler(prefixed)


class Handler(RendezvousHandler):
    """The rendezvous of one torchrun agent.

    Promise: `num_nodes_waiting` and `is_closed` neither ask etcd nor raise, so an etcd outage ends neither the agent
    nor the training. `next_rendezvous` waits through an outage within join_timeout. Limit: if a host dies while a round
    is formed, this may take a lease longer. For one thread; the handler owns a thread with a connection to etcd, which
    ends with `shutdown` or the process.
    """

    def __init__(self, options: RendezvousOptions) -> None:
        self._options = options
        self._host = options.local_addr or address_of_this_node(*options.settings.endpoints)
        self._client: RendezvousClient | None = None
        self._store: TCPStore | None = None
        """The store of the current round, dropped when the next one begins. On rank 0 this process serves it."""
        self._agents: AgentsStore | None = None
        self._membership_changed = False
        """Whether the round ends because others want to join, not because workers failed."""
        self._join_failed = False
        """Whether the last `next_rendezvous` failed."""
        self._has_run = False
        self._unreached = 0
        """Number of consecutive rounds whose store was not reached."""

    def __repr__(self) -> str:
        return f"Handler({self._client or self._options.keys.run})"

    @property
    def node(self) -> RendezvousNode | None:
        """This agent's node; None before the first `next_rendezvous` and after `shutdown`."""
        return self._client.node if self._client is not None else None

    # -- torch's interface -------------------------------------------------------------------------------------

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._options.keys.run

    @property
    def use_agent_store(self) -> bool:
        """Whether workers use the agents' store; TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives them their own."""
        return os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"

    def next_rendezvous(self) -> RendezvousInfo:
        try:
            info = self._next_rendezvous()
            self._join_failed = False
            return info
        except InstepError as error:
            self._join_failed = True
            spare = self.node is not None and self.node.is_spare
            if isinstance(error, RunClosed) and spare:
                log.warning("%s This node was a spare: it was not needed and ran nothing.", error)
            raise error_for_torchrun(error, spare=spare) from None

    def num_nodes_waiting(self) -> int:
        """1 if a new round is needed, for any reason; else 0.

        All nodes get this answer at the same moment: if one restarted first, the workers of the others would fail, and
        torchrun counts failures. Once the workers of some node have finished, the answer is 0: that node would not join
        the new round, and the others would wait for it.
        """
        node, agents = self.node, self._agents
        is_lost = agents is not None and agents.is_lost
        self._membership_changed = is_lost or (node is not None and self._must_rejoin(node))
        return int(self._membership_changed)

    def _must_rejoin(self, node: RendezvousNode) -> bool:
        """Whether this node has to join a new round. Returns True on all nodes at the same moment."""
        if not node.is_left_behind:
            return False
        if self._agents is not None and node.is_in_current_round and self._agents.is_ending:
            return False
        time.sleep(max(0.0, node.left_behind_at + TOGETHER_S - time.monotonic()))
        return True

    def is_closed(self) -> bool:
        return self.node is not None and self.node.is_closed

    def set_closed(self) -> None:
        try:
            self._finish()
        except InstepError as error:
            raise error_for_torchrun(error) from None

    def shutdown(self) -> bool:
        """Closes the run and leaves. False if that could not be written to etcd. An agent that was signalled, or never
        admitted, leaves without closing the run, although torch calls this then too (pytorch #150916)."""
        try:
            if not self._join_failed and not isinstance(sys.exception(), SignalException | KeyboardInterrupt):
                self._finish()
        except InstepError as error:
            log.warning("the run %s could not be closed: %s", self.get_run_id(), error)
            return False
        finally:
            client, self._client = self._client, None
            self._store = self._agents = None
            if client is not None:
                client.close()
        return True

    def _finish(self) -> None:
        if self._client is not None:
            self._client.finish()

    # -- a round ----------------------------------------------------------------------------------------------------

    def _next_rendezvous(self) -> RendezvousInfo:
        deadline = time.monotonic() + self._options.join_s
        client = self._client = self._client or RendezvousClient(self._options, self._host)
        cause = self._cause(client.node)
        was_seated = False
        while True:
            own = self._open_store()
            left_s = max(0.001, deadline - time.monotonic())
            current = client.seat(Address(host=self._host, port=own.port), cause, left_s)
            if not was_seated:  # a spare may have waited past the deadline
                deadline, was_seated = time.monotonic() + self._options.join_s, True
            info = self._enter(current, client.node, own)
            if info is not None:
                self._membership_changed, self._has_run, self._unreached = False, True, 0
                return info
            log.warning("round %d lost a node while it was formed: joining the next round", current.number)
            cause = "membership"
            self._check_patience(current, time.monotonic() > deadline)

    def _check_patience(self, current: Round, is_over: bool) -> None:
        """Raises JoinTimeout, with the host to check. A node that has not run yet gives up sooner, because each of its
        attempts stops the workers of all nodes."""
        host = current.store.host if current.store is not None else "rank 0"
        if self._unreached >= MOST_UNREACHED and not self._has_run:
            raise JoinTimeout(
                f"This node cannot reach the store of group rank 0 at {host}, {self._unreached} times in a row: open "
                "the network between them, or set --local-addr on that node to an address that others reach."
            )
        if is_over:
            raise JoinTimeout(
                f"The nodes of round {current.number} of {self.get_run_id()} did not all reach the store of {host}: "
                "check that the nodes reach each other at the addresses given with --local-addr."
            )

    def _enter(self, current: Round, node: RendezvousNode, own: TCPStore) -> RendezvousInfo | None:
        """Meets the other nodes of the round. None if one of them died meanwhile."""
        rank, size = current.rank_of(node.name), len(current.seats)
        if rank is None or current.store is None:
            return None
        try:
            store = own if rank == 0 else connect_store(current.store, self._arrival_s, self._options.read_s)
        except DistError as error:
            log.warning("the store of round %d, at %s, cannot be reached: %s", current.number, current.store, error)
            self._unreached += 1
            return None
        shared = AgentsStore(store, rank, size, timeout_s=self._arrival_s)
        if not await_all_nodes(shared, size, is_over=lambda: node.is_left_behind, timeout_s=self._arrival_s):
            return None
        try:
            info = RendezvousInfo(shared, rank, size, self._store_of_workers(rank, shared, current.store))
        except DistError as error:
            log.warning("the store of round %d is gone: %s", current.number, error)
            return None
        self._store, self._agents = store, shared
        nodes = "1 node" if size == 1 else f"{size} nodes"
        level = logging.WARNING if self._has_run else logging.INFO  # the first round is expected
        log.log(level, "round %d, %s, this is group rank %d: %s", current.number, nodes, rank, WHY[current.cause])
        return info

    def _store_of_workers(self, rank: int, store: Store, shared: Address) -> RendezvousStoreInfo:
        if self.use_agent_store:
            return RendezvousStoreInfo(shared.host, shared.port)
        return RendezvousStoreInfo.build(rank, store, local_addr=self._host)

    def _open_store(self) -> TCPStore:
        self._store = self._agents = None
        try:
            return open_store(self._host, self._options.read_s)
        except DistError as error:
            raise SettingsError(
                f"this node cannot reach itself as {self._host!r}, so the others cannot either: set --local-addr to "
                f"an address of this machine ({error})"
            ) from None

    @property
    def _arrival_s(self) -> float:
        return self._options.ttl_s + ARRIVAL_S

    def _cause(self, node: RendezvousNode) -> Cause:
        if not node.was_seated:
            return "new"
        return "membership" if self._membership_changed else "failure"
