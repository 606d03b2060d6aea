"""The status of each endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable

from instep.errors import EtcdDenied, EtcdError, EtcdUnavailable
from instep.etcd import _wire
from instep.etcd._diagnosis import diagnose
from instep.etcd._transport import Transport
from instep.etcd._types import Status
from instep.tasks import all_of


async def read_statuses(transport: Transport, timeout_s: float | None) -> tuple[Status, ...]:
    limit_s = transport.timeout_s if timeout_s is None else timeout_s
    indices = range(len(transport.pool))
    return await all_of(*(_read_status(transport, index, limit_s) for index in indices))


async def _read_status(transport: Transport, index: int, timeout_s: float) -> Status:
    endpoint = transport.pool.endpoints[index]
    try:
        reply = await transport.once(index, _wire.STATUS, _wire.StatusRequest(), "read the status", timeout_s=timeout_s)
    except EtcdUnavailable as error:
        reason = await diagnose(endpoint, transport.pool.files)
        return Status(endpoint=str(endpoint), error=EtcdDenied(reason) if reason else error)
    except EtcdError as error:
        return Status(endpoint=str(endpoint), error=error)
    return Status(
        endpoint=str(endpoint),
        version=reply.version,
        cluster_id=reply.header.cluster_id,
        member_id=reply.header.member_id,
        leader=reply.leader,
        raft_term=reply.raftTerm,
        revision=reply.header.revision,
        is_learner=reply.isLearner,
        alarms=tuple(reply.errors),
    )


def alarm_names(errors: Iterable[str]) -> tuple[str, ...]:
    """`("NOSPACE",)` for `memberID:123 alarm:NOSPACE`, each once; other errors in etcd's status are ignored."""
    return tuple(dict.fromkeys(name for text in errors for name in re.findall(r"alarm:([A-Z]+)", text)))
