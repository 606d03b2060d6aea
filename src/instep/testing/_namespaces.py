"""A network of a cluster in kernel namespaces, on which packets can be lost without notice to either side."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from instep.errors import EtcdError, SettingsError
from instep.testing._link import Link
from instep.testing._proxy import Proxy

HOST = "host"
"""The end of this machine, used by clients and the harness."""

_TIMEOUT_S = 10.0
_TRIES = 50
_FIX = "run as root with iproute2 installed, or use proxied=True"
_NOBODY = "02:00:00:00:00:01"
_chance = random.SystemRandom()


@functools.cache
def namespaces_refusal() -> str | None:
    """Why clusters cannot use network namespaces on this machine, with the fix; None if they can.

    For skipping tests, like `slow_disk_refusal`. It tries once per process, which takes about 0.1 s.
    """
    try:
        NamespaceNetwork(f"try-{secrets.token_hex(4)}", ["m1"]).close()
    except SettingsError as refusal:
        return str(refusal)
    return None


class NamespaceNetwork:
    """A network namespace for each member, and a bridge that connects them and this machine.

    A fault makes one end send to an unused address: packets are lost, and nothing is refused or reset. After `heal`,
    connections continue when TCP retransmits, which may take as long as the fault lasted. `token` is part of all names,
    so `remove` can clean up after a killed process.
    """

    def __init__(self, token: str, names: Sequence[str]) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise SettingsError(f"network namespaces need root and the program ip: {_FIX}")
        self._token = token
        self._bridge = _device(token)
        subnet = _free_subnet()
        self.addresses = {HOST: f"{subnet}.1"} | {name: f"{subnet}.{n}" for n, name in enumerate(names, 2)}
        try:
            _ip(self._making())
        except EtcdError as error:
            self.close()
            raise SettingsError(f"this machine makes no network namespaces ({error}): {_FIX}") from error
        except BaseException:
            self.close()
            raise
        self._held: set[tuple[str, str]] = set()

    def prefix(self, name: str) -> list[str]:
        """The command prefix that runs a program in a member's namespace."""
        return [str(shutil.which("ip")), "netns", "exec", self._space(name)]

    def partition(self, groups: Sequence[Sequence[str]]) -> None:
        """Loses all packets between members of different groups."""
        for left, right in itertools.combinations(groups, 2):
            self._lose((*itertools.product(left, right), *itertools.product(right, left)))

    def block(self, sender: str, receiver: str) -> None:
        """Loses the packets from one member to another."""
        self._lose([(sender, receiver)])

    def hold_clients(self, name: str) -> None:
        """Loses all packets between a member and this machine."""
        self._lose([(HOST, name), (name, HOST)])

    def heal(self) -> None:
        """Ends all faults."""
        held, self._held = self._held, set()
        _ip(f"{self._neighbour(pair, 'del')}" for pair in sorted(held))

    def proxy(self, name: str) -> Proxy:
        raise SettingsError("this cluster has no proxies: create it with EtcdCluster(proxied=True)")

    def between(self, one: str, other: str) -> tuple[Link, Link]:
        raise SettingsError("this cluster has no proxies: create it with EtcdCluster(proxied=True)")

    def close(self) -> None:
        """Removes the namespaces and the bridge."""
        remove(self._token)

    # -- inside ----------------------------------------------------------------------------------------------

    def _lose(self, pairs: Iterable[tuple[str, str]]) -> None:
        pairs = list(pairs)
        _ip(f"{self._neighbour(pair, 'replace')} lladdr {_NOBODY} nud permanent" for pair in pairs)
        self._held.update(pairs)

    def _neighbour(self, pair: tuple[str, str], verb: str) -> str:
        sender, receiver = pair
        space, device = ("", self._bridge) if sender == HOST else (f"-n {self._space(sender)}", "eth0")
        return f"{space} neigh {verb} {self.addresses[receiver]} dev {device}"

    def _space(self, name: str) -> str:
        return f"{self._token}-{name}"

    def _making(self) -> list[str]:
        lines = [
            f"link add {self._bridge} type bridge",
            f"addr add {self.addresses[HOST]}/24 dev {self._bridge}",
            f"link set {self._bridge} up",
        ]
        for number, name in enumerate(self.addresses):
            if name != HOST:
                lines += self._joining(self._space(name), f"{self._bridge}{number}", self.addresses[name])
        return lines

    def _joining(self, space: str, device: str, address: str) -> list[str]:
        return [
            f"netns add {space}",
            f"link add {device} type veth peer name eth0 netns {space}",
            f"link set {device} master {self._bridge}",
            f"link set {device} up",
            f"-n {space} link set lo up",
            f"-n {space} addr add {address}/24 dev eth0",
            f"-n {space} link set eth0 up",
        ]


def remove(token: str) -> None:
    """Removes the remains of a network with this token, if there are any."""
    bridge = _device(token)
    lines = [f"link del {path.name}" for path in Path("/sys/class/net").glob(f"{bridge}*")]
    lines += [f"netns del {path.name}" for path in Path("/run/netns").glob(f"{token}-*")]
    for line in lines:
        # The kernel removes the devices of a namespace asynchronously, possibly just now.
        with contextlib.suppress(EtcdError):
            _ip([line])


def _device(token: str) -> str:
    # Device names have at most 15 characters; the bridge ends add a number.
    return f"ins{token[-8:]}"


def _free_subnet() -> str:
    """The first three numbers of a subnet without a route on this machine, in the benchmark range (RFC 2544)."""
    routes = _run(["ip", "-4", "route", "show", "table", "all"])
    for _ in range(_TRIES):
        subnet = f"198.{_chance.randint(18, 19)}.{_chance.randint(0, 255)}"
        if f"{subnet}." not in routes:
            return subnet
    raise SettingsError(f"no free subnet in 198.18.0.0/15 after {_TRIES} tries: {_FIX}")


def _ip(lines: Iterable[str]) -> None:
    """Runs ip commands one after the other, up to the first that fails."""
    for line in lines:
        _run(["ip", *line.split()])


def _run(command: Sequence[str]) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EtcdError(f"{' '.join(command)}: {error}") from error
    if answer.returncode != 0:
        raise EtcdError(f"{' '.join(command)}: {answer.stderr.strip()}")
    return answer.stdout
