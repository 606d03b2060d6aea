"""The members of a proxied cluster, and their clients, are cut off from one another."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from instep.errors import EtcdError, SettingsError
from instep.etcd_server.health import is_healthy, wait_until
from instep.testing import EtcdCluster, EtcdMember, Link, etcd_versions


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(proxied=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: EtcdCluster) -> Iterator[EtcdCluster]:
    """A cluster with proxies, healed before each test."""
    yield shared_cluster
    shared_cluster.heal()
    shared_cluster.start()


def port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def value(cluster: EtcdCluster, member: EtcdMember, key: str) -> str:
    """What a member has in its own store, whether it knows a leader or not."""
    endpoint = f"--endpoints={member.direct_endpoint}"
    return cluster.etcdctl(endpoint, "get", key, "--print-value-only", "--consistency=s")


def does_not_lead(member: EtcdMember) -> bool:
    return member.status().leader != member.status().member


@pytest.mark.parametrize("version", [binary.version for binary in etcd_versions()])
def test_an_isolated_leader_is_replaced_and_catches_up_when_healed(version: str) -> None:
    with EtcdCluster(version=version, proxied=True) as cluster:
        old = cluster.leader()
        cluster.isolate(old)
        assert not is_healthy(old.endpoint), "its clients are cut off too"
        assert cluster.leader(other_than=old) is not old
        assert wait_until(lambda: does_not_lead(old), timeout_s=10)
        cluster.etcdctl("put", "lr", "new")
        assert value(cluster, old, "lr") == ""
        cluster.heal()
        cluster.wait_healthy()
        assert wait_until(lambda: value(cluster, old, "lr") == "new", timeout_s=10)
        assert is_healthy(old.endpoint)


def test_a_partition_leaves_clients_alone_and_only_the_larger_side_serves(cluster: EtcdCluster) -> None:
    lonely, *others = cluster.members
    cluster.partition([lonely], others)
    assert wait_until(lambda: lonely.status().leader == 0, timeout_s=10)
    assert cluster.leader(other_than=lonely) in others
    assert all(is_healthy(member.endpoint) for member in others)
    assert not lonely.healthy
    socket.create_connection(("127.0.0.1", port(lonely.endpoint)), timeout=5).close()


def test_members_in_no_group_reach_both_sides(cluster: EtcdCluster) -> None:
    one, bridge, other = cluster.members
    cluster.partition([one], [other])
    cluster.etcdctl("put", "bridged", "1")
    assert bridge.healthy
    between = [*cluster.links(one, bridge), *cluster.links(other, bridge)]
    assert all("no fault" in repr(link) for link in between)
    assert all("down held, up held" in repr(link) for link in cluster.links(one, other))


def test_one_direction_can_be_blocked(cluster: EtcdCluster) -> None:
    mute = cluster.leader()
    for follower in cluster.followers():
        cluster.block(mute, follower)
    assert cluster.leader(other_than=mute) is not mute
    heard = mute.status().term
    assert wait_until(lambda: mute.status().term > heard or does_not_lead(mute), timeout_s=10), "it hears the others"


def test_clients_that_are_cut_off_are_refused_while_the_member_continues(cluster: EtcdCluster) -> None:
    member = cluster.leader()
    cluster.cut_clients(member)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port(member.endpoint)), timeout=5)
    assert member.healthy
    assert cluster.leader() is member
    cluster.heal()
    assert is_healthy(member.endpoint)


def test_each_link_carries_what_its_own_member_dials_also_after_a_restart(cluster: EtcdCluster) -> None:
    one, two, three = cluster.members

    def all_open(links: tuple[Link, Link]) -> bool:
        return all(link.statistics().open for link in links)

    pairs = [cluster.links(*pair) for pair in ((one, two), (one, three), (two, three))]
    assert all(wait_until(lambda pair=pair: all_open(pair), timeout_s=5) for pair in pairs)
    two.kill()
    assert wait_until(lambda: cluster.links(one, two)[1].statistics().open == 0, timeout_s=5)
    two.restart()
    cluster.wait_healthy()
    assert wait_until(lambda: all_open(cluster.links(one, two)), timeout_s=10)
    assert "m1 to m2" in repr(cluster.links(one, two)[0])


def test_an_unknown_process_that_connects_as_a_peer_is_reset(cluster: EtcdCluster) -> None:
    url = cluster.etcdctl("member", "list").splitlines()[0].split(", ")[3]
    with socket.create_connection(("127.0.0.1", port(url)), timeout=5) as stranger, pytest.raises(ConnectionError):
        converse(stranger)


def converse(stranger: socket.socket) -> None:
    stranger.sendall(b"GET /version HTTP/1.1\r\n\r\n")
    assert stranger.recv(1) != b""


def test_slow_links_delay_what_needs_a_quorum(cluster: EtcdCluster) -> None:
    leader = cluster.leader()
    for follower in cluster.followers():
        for link in cluster.links(leader, follower):
            link.delay(0.1)
    began = time.monotonic()
    assert cluster.etcdctl("put", "slow", "1") == "OK"
    assert time.monotonic() - began >= 0.2
    assert cluster.leader() is leader


def test_a_network_fault_without_effect_is_refused_and_not_applied(cluster: EtcdCluster) -> None:
    a, b, c = cluster.members
    with EtcdCluster(members=1, proxied=True) as other:
        stranger = other.members[0]
        for fault in (
            lambda: cluster.isolate(stranger),
            lambda: cluster.cut_clients(stranger),
            lambda: cluster.block(a, stranger),
            lambda: cluster.links(stranger, a),
            lambda: cluster.partition([a], [b, stranger]),
        ):
            with pytest.raises(SettingsError, match="is not a member of this cluster"):
                fault()
    for fault in (lambda: cluster.block(a, a), lambda: cluster.links(b, b)):
        with pytest.raises(SettingsError, match="name two members"):
            fault()
    with pytest.raises(SettingsError, match="each member once"):
        cluster.partition([a, b], [b, c])
    for groups in ([], [[a]], [[a], []], [a, b]):
        with pytest.raises(SettingsError, match="at least two groups of members"):
            cluster.partition(*groups)  # type: ignore[arg-type]  # the last are no groups
    links = [link for pair in ((a, b), (b, c), (a, c)) for link in cluster.links(*pair)]
    assert all("no fault" in repr(fine) for fine in (*links, *map(cluster.proxy, cluster.members)))


def test_a_cluster_without_proxies_cannot_be_partitioned(etcd_cluster: EtcdCluster) -> None:
    with pytest.raises(SettingsError, match="proxied=True"):
        etcd_cluster.isolate(etcd_cluster.members[0])


def test_nothing_is_left_open_when_a_proxied_cluster_is_closed() -> None:
    with EtcdCluster(proxied=True) as cluster:
        proxy, ports = cluster.proxy(cluster.members[0]), [port(url) for url in cluster.endpoints]
    for number in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", number), timeout=5)
    with pytest.raises(EtcdError, match="closed"):
        proxy.statistics()
