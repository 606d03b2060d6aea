"""The work of an etcd server between two moments, from its own counters at /metrics."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from chaos.harness.processes import cpu_s

from instep.testing import EtcdServer

TIMEOUT_S = 10.0
SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
METHOD = re.compile(r'grpc_method="(\w+)",grpc_service="etcdserverpb')
CALLS = "grpc_server_msg_received_total"


@dataclass(frozen=True, slots=True)
class Load:
    """Counts since the start of the server. `calls` are requests by method; each request of a stream counts."""

    values: Mapping[str, float]
    calls: Mapping[str, float]
    cpu_s: float

    @classmethod
    def of(cls, server: EtcdServer) -> Load:
        with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=TIMEOUT_S) as reply:
            text = reply.read().decode()
        values: defaultdict[str, float] = defaultdict(float)
        calls: defaultdict[str, float] = defaultdict(float)
        for line in text.splitlines():
            if not (sample := SAMPLE.match(line)):
                continue
            values[sample["name"]] += float(sample["value"])
            if sample["name"] == CALLS and (method := METHOD.search(sample["labels"])):
                calls[method[1]] += float(sample["value"])
        return cls(values, calls, cpu_s(server.pid))

    def since(self, before: Load) -> Load:
        return Load(_less(self.values, before.values), _less(self.calls, before.calls), self.cpu_s - before.cpu_s)


def _less(after: Mapping[str, float], before: Mapping[str, float]) -> Mapping[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
