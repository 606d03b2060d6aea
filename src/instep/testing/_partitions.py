"""Breaking the network of a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from instep.errors import SettingsError
from instep.testing._link import Link
from instep.testing._member import EtcdMember
from instep.testing._network import Network
from instep.testing._proxy import Proxy


class Partitions:
    """The network faults of a cluster made with `proxied=True` or `network="namespaces"`; SettingsError on others.

    A fault that would be none, such as one of a member of another cluster, is a SettingsError, and nothing is applied.
    Every fault holds on return and until `heal()`, also over restarts of members. Proxies hold back bytes and
    lose none: see `Link.black_hole`. In namespaces packets are lost, and TCP sends them again after a heal.
    """

    _members: tuple[EtcdMember, ...]
    _network: Network | None

    def isolate(self, member: EtcdMember, *, clients: bool = True) -> None:
        """Cut a member off from all others, and with `clients` from its clients: a black hole in all directions."""
        network, name = self._faulty(), self._name(member)
        network.partition([[name], [other.name for other in self._members if other is not member]])
        if clients:
            network.hold_clients(name)

    def partition(self, *groups: Sequence[EtcdMember]) -> None:
        """Cut the members of each group off from those of the others, in both directions; clients reach all.

        A member in no group reaches everybody.
        """
        network = self._faulty()
        if len(groups) < 2 or not all(map(_is_group, groups)):
            raise SettingsError("a partition is between two groups of members or more, such as ([a], [b, c])")
        named = [[self._name(member) for member in group] for group in groups]
        everybody = [name for group in named for name in group]
        if len(set(everybody)) < len(everybody):
            raise SettingsError("a partition has each member once: the same one is named twice")
        network.partition(named)

    def block(self, sender: EtcdMember, receiver: EtcdMember) -> None:
        """Hold back what one member sends to another; the other direction stays open."""
        network = self._faulty()
        network.block(*self._two(sender, receiver))

    def cut_clients(self, member: EtcdMember) -> None:
        """Reset the connections of a member's clients and refuse new ones; its peers still reach it.

        Only proxies can; so it is with `proxy` and `links`.
        """
        self.proxy(member).cut()

    def heal(self) -> None:
        """End all faults of the network, those of single links included."""
        self._faulty().heal()

    def proxy(self, member: EtcdMember) -> Proxy:
        """The proxy through which clients reach a member."""
        network = self._faulty()
        return network.proxy(self._name(member))

    def links(self, one: EtcdMember, other: EtcdMember) -> tuple[Link, Link]:
        """The connections that the one member dials to the other, and those that the other dials to it.

        Both carry messages in both directions.
        """
        network = self._faulty()
        return network.between(*self._two(one, other))

    def _name(self, member: EtcdMember) -> str:
        if not any(member is ours for ours in self._members):
            raise SettingsError(f"{member!r} is no member of this cluster: take one of its members")
        return member.name

    def _two(self, one: EtcdMember, other: EtcdMember) -> tuple[str, str]:
        if one is other:
            raise SettingsError(f"there is nothing between {one!r} and itself: name two members")
        return self._name(one), self._name(other)

    def _faulty(self) -> Network:
        if self._network is None:
            raise SettingsError(
                "this cluster's network cannot be broken: make it with EtcdCluster(proxied=True) and start it"
            )
        return self._network


def _is_group(group: object) -> bool:
    return isinstance(group, Sequence) and len(group) > 0
