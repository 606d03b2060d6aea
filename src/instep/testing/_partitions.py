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

    Every fault holds on return and until `heal()`, also over restarts of members. Proxies hold back bytes and
    lose none: see `Link.black_hole`. In namespaces packets are lost, and TCP sends them again after a heal.
    """

    _members: tuple[EtcdMember, ...]
    _network: Network | None

    def isolate(self, member: EtcdMember, *, clients: bool = True) -> None:
        """Cut a member off from all others, and with `clients` from its clients: a black hole in all directions."""
        others = [other.name for other in self._members if other is not member]
        self._faulty().partition([[member.name], others])
        if clients:
            self._faulty().hold_clients(member.name)

    def partition(self, *groups: Sequence[EtcdMember]) -> None:
        """Cut the members of each group off from those of the others, in both directions; clients reach all.

        A member in no group reaches everybody.
        """
        self._faulty().partition([[member.name for member in group] for group in groups])

    def block(self, sender: EtcdMember, receiver: EtcdMember) -> None:
        """Hold back what one member sends to another; the other direction stays open."""
        self._faulty().block(sender.name, receiver.name)

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
        return self._faulty().proxy(member.name)

    def links(self, one: EtcdMember, other: EtcdMember) -> tuple[Link, Link]:
        """The connections that the one member dials to the other, and those that the other dials to it.

        Both carry messages in both directions.
        """
        return self._faulty().between(one.name, other.name)

    def _faulty(self) -> Network:
        if self._network is None:
            raise SettingsError(
                "this cluster's network cannot be broken: make it with EtcdCluster(proxied=True) and start it"
            )
        return self._network
