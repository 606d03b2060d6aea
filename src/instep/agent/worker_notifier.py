"""Notes for people in the training's own log, sent to the node's workers."""

from __future__ import annotations

import logging

from instep.agent.state import RunState
from instep.agent.workers import Workers
from instep.etcd import Client
from instep.wire.messages import JoinWait, Note

log = logging.getLogger("instep")


class WorkerNotifier:
    """Sends notes through one rank of the node, to log each sentence once. Sends every joining worker what it waits
    for."""

    def __init__(self, client: Client, state: RunState, workers: Workers) -> None:
        self._client = client
        self._state = state
        self._workers = workers
        self._linked = True

    def __repr__(self) -> str:
        return f"WorkerNotifier({'etcd answers' if self._linked else 'etcd does not answer'})"

    def note(self, text: str, *, level: int = logging.WARNING) -> None:
        for worker in list(self._workers)[:1]:
            worker.send(Note(level, text))

    def note_link(self) -> None:
        """Reports once that etcd cannot be reached, and once that it is back."""
        linked = self._client.link == "connected"
        if linked == self._linked:
            return
        self._linked = linked
        text = (
            "etcd answers again"
            if linked
            else "etcd does not answer: training continues with the agreed values; changes wait"
        )
        log.warning("%s", text)
        self.note(text)

    def note_versions(self) -> None:
        """In a new view: reports if its nodes run different versions of Instep."""
        versions = self._state.view.versions if self._state.view is not None else ()
        if versions:
            text = (
                f"the nodes of this run use different versions of Instep ({', '.join(versions)}): they may not agree "
                "on changes; stop the run and install one version on every node"
            )
            log.warning("%s", text)
            self.note(text)

    def report_unlisted(self, problem: str) -> None:
        """Sends joining workers why the run's state cannot be read, at once."""
        self._send_join_waits(problem, urgent=True)

    def send_join_waits(self, problem: str | None, *, here: str | None = None) -> None:
        """Sends joining workers what they wait for: the end of `problem` if there is one, else what the state says.
        `here` is what keeps other processes of this node from joining; it is sent at once."""
        if self._linked or here:
            text, missing = _awaited(self._state)
            text = problem or text
            held = problem is None and not here
            self._send_join_waits(
                f"{text}; {here}" if here else text, missing=missing, urgent=here is not None, held=held
            )

    def _send_join_waits(
        self, text: str, *, missing: tuple[int, ...] = (), urgent: bool = False, held: bool = False
    ) -> None:
        """`held`: also notifies a worker whose rank another process holds."""
        for worker in self._workers:
            if not worker.view:
                holder = _holder(self._state, worker.rank) if held and worker.rank not in missing else None
                said = f"{text}; {holder}" if holder else text
                worker.send(JoinWait(said, missing, urgent))


def _holder(state: RunState, rank: int) -> str | None:
    """Which process holds the rank in the current view."""
    nodes = state.view.nodes if state.view is not None else {}
    node = next((name for name, members in nodes.items() if rank in members.ranks), None)
    return f"rank {rank} belongs to a live process on node {node}" if node is not None else None


def _awaited(state: RunState) -> tuple[str, tuple[int, ...]]:
    forming = state.forming
    if state.leader is None:
        return "a leader to be elected", ()
    if forming is None or not forming.missing:
        return "the view to be formed", ()
    return f"ranks {forming.missing} of {forming.world_size} to join", forming.missing_ranks
