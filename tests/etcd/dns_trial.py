"""In a network of its own, with a name server of its own: how soon a client finds an etcd whose address changes.

`python dns_trial.py FOLDER`: prints one JSON object. Needs `unshare` and the right to make namespaces.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from instep.errors import EtcdError
from instep.etcd import Client
from instep.testing import EtcdServer

NAME = "etcd.infra"
PORT = 2379
A, AAAA = 1, 28


class NameServer:
    """Answers for `NAME` with `addresses`; with none of them it says that there is no such name."""

    def __init__(self) -> None:
        self.addresses: Sequence[str] = ()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(2048)
            end = query.index(b"\0", 12) + 5
            (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
            records = [record for text in self.addresses if (record := _record(kind, text))]
            flags = 0x8180 | (0 if self.addresses else 3)
            header = query[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
            self._socket.sendto(header + query[12:end] + b"".join(records), peer)


def _record(kind: int, text: str) -> bytes | None:
    if kind == (AAAA if ":" in text else A):
        packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
        return b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(packed)) + packed
    return None


def set_up(folder: Path) -> NameServer:
    resolver = folder / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["mount", "--bind", str(resolver), "/etc/resolv.conf"],
    ):
        subprocess.run(command, check=True)
    return NameServer()


async def until_written(client: Client, value: str) -> float:
    """Seconds until a put succeeds."""
    began = time.monotonic()
    while True:
        try:
            await client.put("a", value, timeout_s=1.0)
        except EtcdError:
            continue
        return time.monotonic() - began


async def main(folder: Path) -> dict[str, object]:
    names = set_up(folder)
    found: dict[str, object] = {}

    def etcd(host: str) -> EtcdServer:
        return EtcdServer(PORT, host=host, data_dir=folder / "data")

    async with Client([f"http://{NAME}:{PORT}"]) as client:
        names.addresses = ["127.0.0.2"]
        with etcd("127.0.0.2"):
            async with client.watch("a") as watch:
                await until_written(client, "1")
                await anext(watch)
        for title, addresses in (
            ("moved", ["127.0.0.3"]),
            ("second of two addresses", ["127.0.0.7", "127.0.0.4"]),
            ("IPv6", ["::1"]),
        ):
            names.addresses = addresses
            with etcd(addresses[-1]):
                found[title] = await until_written(client, title)
        names.addresses = []
        message, doubtful = "", False
        until = time.monotonic() + 6
        while time.monotonic() < until:
            try:
                await client.put("a", "lost", timeout_s=0.5)
            except EtcdError as error:
                message, doubtful = str(error), doubtful or error.applied_unknown
        found["message"], found["in doubt"] = message, doubtful
        names.addresses = ["127.0.0.5"]
        with etcd("127.0.0.5"):
            found["back after it did not resolve"] = await until_written(client, "back")
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))), flush=True)
