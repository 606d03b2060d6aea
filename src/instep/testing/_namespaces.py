"""A network of a cluster's own, made by the kernel: packets are lost on it without anybody being told."""

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
"""This machine's own end, where clients and the harness are."""

_TIMEOUT_S = 10.0
_TRIES = 50
_CURE = "run as root with iproute2 installed, or use proxied=True"
_NOBODY = "02:00:00:00:00:01"
_chance = random.SystemRandom()


@functools.cache
def namespaces_refusal() -> str | None:
    """Why no cluster can have network namespaces on this machine, with the cure; None when it can.

    For tests, as `slow_disk_refusal`. Tried once per process, which takes some 0.1 s.
    """
    try:
        NamespaceNetwork(f"try-{secrets.token_hex(4)}", ["m1"]).close()
    except SettingsError as refusal:
        return str(refusal)
    return None


class NamespaceNetwork:
    """A network namespace for each member and a bridge that joins them and this machine.

    A fault makes one end send to an address where nobody is: packets are lost, nothing is refused or reset, and
    connections go on after a heal as TCP retransmits, which may take as long again as the fault lasted.
    `token` is part of all names, so that `remove` can clean up after a process that was killed.
    """

    def __init__(self, token: str, names: Sequence[str]) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise SettingsError(f"network namespaces need root and the program ip: {_CURE}")
        self._token = token
        self._bridge = _device(token)
        subnet = _free_subnet()
        self.addresses = {HOST: f"{subnet}.1"} | {name: f"{subnet}.{n}" for n, name in enumerate(names, 2)}
        try:
            _ip(self._making())
        except EtcdError as error:
            self.close()
            raise SettingsError(f"this machine makes no network namespaces ({error}): {_CURE}") from error
        except BaseException:
            self.close()
            raise
        self._held: set[tuple[str, str]] = set()

    def prefix(self, name: str) -> list[str]:
        """What a command is to start with in order to run in a member's namespace."""
        return [str(shutil.which("ip")), "netns", "exec", self._space(name)]

    def partition(self, groups: Sequence[Sequence[str]]) -> None:
        """Lose everything between members of different groups."""
        for left, right in itertools.combinations(groups, 2):
            self._lose((*itertools.product(left, right), *itertools.product(right, left)))

    def block(self, sender: str, receiver: str) -> None:
        """Lose what one member sends to another."""
        self._lose([(sender, receiver)])

    def hold_clients(self, name: str) -> None:
        """Lose everything between a member and this machine."""
        self._lose([(HOST, name), (name, HOST)])

    def heal(self) -> None:
        """Lose nothing more."""
        held, self._held = self._held, set()
        _ip(f"{self._neighbour(pair, 'del')}" for pair in sorted(held))

    def proxy(self, name: str) -> Proxy:
        raise SettingsError("this cluster has no proxies: make it with EtcdCluster(proxied=True)")

    def between(self, one: str, other: str) -> tuple[Link, Link]:
        raise SettingsError("this cluster has no proxies: make it with EtcdCluster(proxied=True)")

    def close(self) -> None:
        """Remove the namespaces and the bridge."""
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
    """Remove what a network of this token has left behind; nothing when there is nothing."""
    bridge = _device(token)
    lines = [f"link del {path.name}" for path in Path("/sys/class/net").glob(f"{bridge}*")]
    lines += [f"netns del {path.name}" for path in Path("/run/netns").glob(f"{token}-*")]
    for line in lines:
        # The kernel removes a namespace's devices in its own time, perhaps just now.
        with contextlib.suppress(EtcdError):
            _ip([line])


def _device(token: str) -> str:
    # Names of devices have at most 15 letters, and the ends at the bridge add a number.
    return f"ins{token[-8:]}"


def _free_subnet() -> str:
    """The first three numbers of a subnet that this machine has no route to, in the range for benchmarks (RFC 2544)."""
    routes = _run(["ip", "-4", "route", "show", "table", "all"])
    for _ in range(_TRIES):
        subnet = f"198.{_chance.randint(18, 19)}.{_chance.randint(0, 255)}"
        if f"{subnet}." not in routes:
            return subnet
    raise SettingsError(f"no free subnet in 198.18.0.0/15 after {_TRIES} tries: {_CURE}")


def _ip(lines: Iterable[str]) -> None:
    """Run these commands of ip, one after the other, up to the first that fails."""
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
