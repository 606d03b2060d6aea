"""etcd's wire messages and methods, built at import without generated code.

Generated stubs refuse protobuf runtimes older than their generator; a descriptor built here loads on every
protobuf from 4.21 on. The pool is private, so another etcd library in the process cannot conflict with it.
Numbers and names are those of etcd's rpc.proto and kv.proto; only the fields that this client uses are
described. Enumerations are carried as int32, which is the same on the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# A field is name:number:type. "*" makes it repeated, "|" puts it into the message's oneof.
_TABLE = {
    "ResponseHeader": "cluster_id:1:uint64 member_id:2:uint64 revision:3:int64 raft_term:4:uint64",
    "KeyValue": (
        "key:1:bytes create_revision:2:int64 mod_revision:3:int64 version:4:int64 value:5:bytes lease:6:int64"
    ),
    "Event": "type:1:int32 kv:2:KeyValue",
    "RangeRequest": (
        "key:1:bytes range_end:2:bytes limit:3:int64 revision:4:int64 sort_order:5:int32 sort_target:6:int32 "
        "serializable:7:bool keys_only:8:bool"
    ),
    "RangeResponse": "header:1:ResponseHeader kvs:2:KeyValue* more:3:bool count:4:int64",
    "PutRequest": "key:1:bytes value:2:bytes lease:3:int64",
    "PutResponse": "header:1:ResponseHeader",
    "DeleteRangeRequest": "key:1:bytes range_end:2:bytes",
    "DeleteRangeResponse": "header:1:ResponseHeader deleted:2:int64",
    "RequestOp": ("request_range:1:RangeRequest| request_put:2:PutRequest| request_delete_range:3:DeleteRangeRequest|"),
    "ResponseOp": (
        "response_range:1:RangeResponse| response_put:2:PutResponse| response_delete_range:3:DeleteRangeResponse|"
    ),
    "Compare": (
        "result:1:int32 target:2:int32 key:3:bytes "
        "version:4:int64| create_revision:5:int64| mod_revision:6:int64| value:7:bytes| lease:8:int64| "
        "range_end:64:bytes"
    ),
    "TxnRequest": "compare:1:Compare* success:2:RequestOp* failure:3:RequestOp*",
    "TxnResponse": "header:1:ResponseHeader succeeded:2:bool responses:3:ResponseOp*",
    "CompactionRequest": "revision:1:int64 physical:2:bool",
    "CompactionResponse": "header:1:ResponseHeader",
    "WatchCreateRequest": "key:1:bytes range_end:2:bytes start_revision:3:int64 fragment:8:bool",
    "WatchProgressRequest": "",
    "WatchRequest": "create_request:1:WatchCreateRequest| progress_request:3:WatchProgressRequest|",
    "WatchResponse": (
        "header:1:ResponseHeader watch_id:2:int64 created:3:bool canceled:4:bool compact_revision:5:int64 "
        "cancel_reason:6:string fragment:7:bool events:11:Event*"
    ),
    "LeaseGrantRequest": "TTL:1:int64 ID:2:int64",
    "LeaseGrantResponse": "header:1:ResponseHeader ID:2:int64 TTL:3:int64 error:4:string",
    "LeaseRevokeRequest": "ID:1:int64",
    "LeaseRevokeResponse": "header:1:ResponseHeader",
    "LeaseKeepAliveRequest": "ID:1:int64",
    "LeaseKeepAliveResponse": "header:1:ResponseHeader ID:2:int64 TTL:3:int64",
    "LeaseTimeToLiveRequest": "ID:1:int64",
    "LeaseTimeToLiveResponse": "header:1:ResponseHeader ID:2:int64 TTL:3:int64 grantedTTL:4:int64",
    "StatusRequest": "",
    "StatusResponse": (
        "header:1:ResponseHeader version:2:string dbSize:3:int64 leader:4:uint64 raftIndex:5:uint64 "
        "raftTerm:6:uint64 raftAppliedIndex:7:uint64 errors:8:string* dbSizeInUse:9:int64 isLearner:10:bool"
    ),
    "AuthenticateRequest": "name:1:string password:2:string",
    "AuthenticateResponse": "header:1:ResponseHeader token:2:string",
}

_PACKAGE = "etcdserverpb"
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL,
    "bytes": _FIELD.TYPE_BYTES,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
    "uint64": _FIELD.TYPE_UINT64,
}


def _add_field(message: descriptor_pb2.DescriptorProto, text: str) -> None:
    name, number, kind = text.split(":")
    field = message.field.add(name=name, number=int(number), label=_FIELD.LABEL_OPTIONAL)
    if kind.endswith("*"):
        field.label = _FIELD.LABEL_REPEATED
    elif kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="union")
        field.oneof_index = 0
    kind = kind.rstrip("*|")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _FIELD.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="instep/etcd.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _TABLE.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            _add_field(message, field)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: _message_class(pool, f"{_PACKAGE}.{name}") for name in _TABLE}


def _message_class(pool: descriptor_pool.DescriptorPool, full_name: str) -> Any:
    descriptor = pool.FindMessageTypeByName(full_name)
    get_class: Callable[[Any], Any] | None = getattr(message_factory, "GetMessageClass", None)
    if get_class is not None:
        return get_class(descriptor)
    # protobuf before 4.22 has no GetMessageClass, and protobuf 5 dropped this one.
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)  # type: ignore[attr-defined, unused-ignore]


_MESSAGES = _build()

RangeRequest = _MESSAGES["RangeRequest"]
PutRequest = _MESSAGES["PutRequest"]
DeleteRangeRequest = _MESSAGES["DeleteRangeRequest"]
RequestOp = _MESSAGES["RequestOp"]
Compare = _MESSAGES["Compare"]
TxnRequest = _MESSAGES["TxnRequest"]
CompactionRequest = _MESSAGES["CompactionRequest"]
WatchRequest = _MESSAGES["WatchRequest"]
WatchCreateRequest = _MESSAGES["WatchCreateRequest"]
WatchProgressRequest = _MESSAGES["WatchProgressRequest"]
LeaseGrantRequest = _MESSAGES["LeaseGrantRequest"]
LeaseRevokeRequest = _MESSAGES["LeaseRevokeRequest"]
LeaseKeepAliveRequest = _MESSAGES["LeaseKeepAliveRequest"]
LeaseTimeToLiveRequest = _MESSAGES["LeaseTimeToLiveRequest"]
StatusRequest = _MESSAGES["StatusRequest"]
AuthenticateRequest = _MESSAGES["AuthenticateRequest"]


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One remote method: its path, and the conversion of its messages to bytes and back."""

    path: str
    serialize: Any
    deserialize: Any


def _method(service: str, name: str, request: str, response: str) -> Method:
    path = f"/{_PACKAGE}.{service}/{name}"
    return Method(path, _MESSAGES[request].SerializeToString, _MESSAGES[response].FromString)


RANGE = _method("KV", "Range", "RangeRequest", "RangeResponse")
PUT = _method("KV", "Put", "PutRequest", "PutResponse")
DELETE = _method("KV", "DeleteRange", "DeleteRangeRequest", "DeleteRangeResponse")
TXN = _method("KV", "Txn", "TxnRequest", "TxnResponse")
COMPACT = _method("KV", "Compact", "CompactionRequest", "CompactionResponse")
LEASE_GRANT = _method("Lease", "LeaseGrant", "LeaseGrantRequest", "LeaseGrantResponse")
LEASE_TIME_TO_LIVE = _method("Lease", "LeaseTimeToLive", "LeaseTimeToLiveRequest", "LeaseTimeToLiveResponse")
LEASE_REVOKE = _method("Lease", "LeaseRevoke", "LeaseRevokeRequest", "LeaseRevokeResponse")
# A stream, of one request and its one reply (see Connection).
LEASE_KEEPALIVE = _method("Lease", "LeaseKeepAlive", "LeaseKeepAliveRequest", "LeaseKeepAliveResponse")
STATUS = _method("Maintenance", "Status", "StatusRequest", "StatusResponse")
AUTHENTICATE = _method("Auth", "Authenticate", "AuthenticateRequest", "AuthenticateResponse")
WATCH = _method("Watch", "Watch", "WatchRequest", "WatchResponse")

UNARY = (
    LEASE_TIME_TO_LIVE,
    *(RANGE, PUT, DELETE, TXN, COMPACT),
    *(LEASE_GRANT, LEASE_REVOKE, LEASE_KEEPALIVE),
    *(STATUS, AUTHENTICATE),
)
# Methods that go through etcd's log, by way of its leader.
LINEARIZABLE = frozenset((RANGE, PUT, DELETE, TXN))
"""Methods whose answers have a revision that later answers of the same history never go below."""
WRITES = frozenset((PUT, DELETE, TXN, COMPACT, LEASE_GRANT, LEASE_REVOKE))
