"""Network faults of a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from instep.errors import SettingsError
from instep.testing._link import Link
from instep.testing._member import EtcdMember
from instep.testing._network import Network
from instep.testing._proxy import Proxy


class Partitions:
    """Network faults of a cluster with `proxied=True` or `network="namespaces"`.

    A fault is in effect when its method returns, until `heal()`, also across restarts of members. Proxies hold bytes
    back and lose none: see `Link.black_hole`. Namespaces lose packets, and TCP sends them again after `heal()`. Raises
    SettingsError for other clusters, and for a fault without effect, such as one of a member of another cluster.
    """

    _members: tuple[EtcdMember, ...]
    _network: Network | None

    def isolate(self, member: EtcdMember, *, clients: bool = True) -> None:
        """Cuts a member off from all others, and with `clients` from its clients: a black hole in all directions."""
        network, name = self._faulty(), self._name(member)
        network.partition([[name], [other.name for other in self._members if other is not member]])
        if clients:
            network.hold_clients(name)

    def partition(self, *groups: Sequence[EtcdMember]) -> None:
        """Cuts the groups of members off from each other, in both directions. Clients reach all members.

        A member in no group reaches all others.
        """
        network = self._faulty()
        if len(groups) < 2 or not all(map(_is_group, groups)):
            raise SettingsError("a partition needs at least two groups of members, such as ([a], [b, c])")
        named = [[self._name(member) for member in group] for group in groups]
        all_names = [name for group in named for name in group]
        if len(set(all_names)) < len(all_names):
            raise SettingsError("a partition names each member once: one is named twice")
        network.partition(named)

    def block(self, sender: EtcdMember, receiver: EtcdMember) -> None:
        """Holds back what one member sends to another. The other direction stays open."""
        network = self._faulty()
        network.block(*self._two(sender, receiver))

    def cut_clients(self, member: EtcdMember) -> None:
        """Resets the connections of a member's clients and refuses new ones. Its peers still reach it.

        Needs `proxied=True`, like `proxy` and `links`.
        """
        self.proxy(member).cut()

    def heal(self) -> None:
        """Ends all faults of the network, including those of single links."""
        self._faulty().heal()

    def proxy(self, member: EtcdMember) -> Proxy:
        """The proxy through which clients reach a member."""
        network = self._faulty()
        return network.proxy(self._name(member))

    def links(self, one: EtcdMember, other: EtcdMember) -> tuple[Link, Link]:
        """The connections that `one` opens to `other`, and those that `other` opens to `one`.

        Both carry messages in both directions.
        """
        network = self._faulty()
        return network.between(*self._two(one, other))

    def _name(self, member: EtcdMember) -> str:
        if not any(member is ours for ours in self._members):
            raise SettingsError(f"{member!r} is not a member of this cluster")
        return member.name

    def _two(self, one: EtcdMember, other: EtcdMember) -> tuple[str, str]:
        if one is other:
            raise SettingsError(f"there is no link between {one!r} and itself: name two members")
        return self._name(one), self._name(other)

    def _faulty(self) -> Network:
        if self._network is None:
            raise SettingsError(
                "this cluster has no network faults: create it with EtcdCluster(proxied=True) and start it"
            )
        return self._network


def _is_group(group: object) -> bool:
    return isinstance(group, Sequence) and len(group) > 0
