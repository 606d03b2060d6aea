"""A thin asynchronous etcd v3 client on grpc.aio. It knows nothing of training.

It supports grpcio >= 1.51, protobuf >= 4.21 and etcd 3.4 to 3.6, and is bound to one event loop.
"""

from instep.etcd._auth import Credentials
from instep.etcd._client import Client
from instep.etcd._history import StoreHistory
from instep.etcd._lease import LeaseKeeper, LeaseState, LeaseTiming
from instep.etcd._ops import Compare, Op
from instep.etcd._tls import Tls
from instep.etcd._types import (
    DeleteResult,
    Event,
    KeyValue,
    Lease,
    Listing,
    OpResult,
    PutResult,
    Statistics,
    Status,
    TxnResult,
    WatchBatch,
)
from instep.etcd._watch import Watch

__all__ = [
    # connecting
    "Client",
    "Credentials",
    "Tls",
    # keys
    "KeyValue",
    "Listing",
    # transactions
    "Compare",
    "Op",
    "DeleteResult",
    "OpResult",
    "PutResult",
    "TxnResult",
    # watching
    "Watch",
    "WatchBatch",
    "Event",
    # leases
    "Lease",
    "LeaseKeeper",
    "LeaseState",
    "LeaseTiming",
    # inspection
    "StoreHistory",
    "Statistics",
    "Status",
]
