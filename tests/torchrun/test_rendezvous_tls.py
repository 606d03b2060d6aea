"""The rendezvous over mutual TLS, by a user who may use one namespace, set up by options or by variables."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousHandler, RendezvousParameters

from async_support import run
from instep.etcd import Client, Credentials, Tls
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Round
from instep.testing import EtcdServer
from instep.torch._rendezvous.handler import create_handler

USER, PASSWORD = "torch", "sesame"
NAMESPACE = "/team-a/training"
QUICK = {"join_timeout": "30", "last_call_timeout": "0.2", "connect_timeout": "5"}
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdServer]:
    """It asks for a certificate and a password, and the user may read and write one namespace only."""
    with EtcdServer(tls=True, auth="root:secret") as server:
        server.etcdctl("user", "add", f"{USER}:{PASSWORD}")
        server.etcdctl("role", "add", "team-a")
        server.etcdctl("role", "grant-permission", "team-a", "--prefix=true", "readwrite", f"{NAMESPACE}/")
        server.etcdctl("user", "grant-role", USER, "team-a")
        yield server


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    path.chmod(0o600)
    return str(path)


def handler(endpoint: str, run_id: str, conf: dict[str, str], most: int = 2) -> RendezvousHandler:
    given = RendezvousParameters("etcd3", endpoint, run_id, most, most, local_addr="127.0.0.1", **QUICK, **conf)
    return create_handler(given)


def meet(endpoint: str, run_id: str, conf: dict[str, str]) -> None:
    """Two nodes form a round, share its store, and end the run."""
    nodes = [handler(endpoint, run_id, conf) for _ in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool:
            found = [joins.result(LIMIT_S) for joins in [pool.submit(node.next_rendezvous) for node in nodes]]
        first, second = sorted(found, key=lambda info: info.rank)
        assert (first.rank, second.rank, second.world_size) == (0, 1, 2)
        first.store.set("word", "read")
        assert second.store.get("word") == b"read"
        assert nodes[0].shutdown()
    finally:
        for node in nodes:
            node.shutdown()


def round_of(server: EtcdServer, run_id: str) -> Round:
    own = server.certificates

    async def main() -> Round:
        tls, root = Tls(cacert=own.ca, cert=own.cert, key=own.key), Credentials(user="root", password="secret")
        async with Client([server.endpoint], tls=tls, credentials=root) as client:
            found = await client.get(RendezvousKeys(NAMESPACE, run_id).round)
            assert found is not None
            return Round.decode(found.value)

    round_: Round = run(main())
    return round_


def conf_of(server: EtcdServer, password_file: str) -> dict[str, str]:
    own = server.certificates
    files = {"cacert": own.ca, "cert": own.cert, "key": own.key}
    return {**files, "user": USER, "password_file": password_file, "namespace": NAMESPACE}


def test_two_nodes_meet_by_what_rdzv_conf_says(guarded: EtcdServer, password_file: str) -> None:
    """An endpoint without a scheme is spoken to with TLS where there are certificates."""
    meet(f"127.0.0.1:{guarded.port}", "by-options", conf_of(guarded, password_file))
    assert len(round_of(guarded, "by-options").seats) == 2


def test_two_nodes_meet_by_insteps_variables(
    guarded: EtcdServer, password_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSTEP_ETCD", guarded.endpoint)
    for name, value in conf_of(guarded, password_file).items():
        monkeypatch.setenv(f"INSTEP_{name.upper()}", value)
    meet("", "by-variables", {})
    assert len(round_of(guarded, "by-variables").seats) == 2


def test_two_nodes_meet_by_etcdctls_variables_and_an_option_wins_over_them(
    guarded: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = guarded.certificates
    variables = {"ENDPOINTS": guarded.endpoint, "CACERT": "/no/such/file", "CERT": own.cert, "KEY": own.key}
    for name, value in {**variables, "USER": f"{USER}:{PASSWORD}"}.items():
        monkeypatch.setenv(f"ETCDCTL_{name}", value)
    meet("", "by-etcdctl", {"cacert": own.ca, "namespace": NAMESPACE})
    assert len(round_of(guarded, "by-etcdctl").seats) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"namespace": "/training"}, "does not permit user torch to read /training/refused/rendezvous/state/round"),
        ({"password_file": "wrong"}, "refused the password of user torch: correct user and password"),
        ({"password_file": "/no/such/file"}, "password file /no/such/file cannot be read"),
        ({"cacert": "foreign"}, "is not signed by a trusted CA .*: give its CA"),
        ({"cert": "foreign", "key": "foreign"}, "does not accept our client certificate"),
        ({"cacert": "/no/such/file"}, "/no/such/file cannot be read"),
    ],
    ids=["namespace", "password", "password file", "authority", "certificate", "file"],
)
def test_whoever_is_not_let_in_is_told_why(
    guarded: EtcdServer, password_file: str, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    (tmp_path / "wrong").write_text("guessed")
    (tmp_path / "wrong").chmod(0o600)
    foreign = guarded.certificates.foreign()
    meant = {
        ("cacert", "foreign"): foreign.ca,
        ("cert", "foreign"): foreign.cert,
        ("key", "foreign"): foreign.key,
        ("password_file", "wrong"): str(tmp_path / "wrong"),
    }
    conf = conf_of(guarded, password_file) | {name: meant.get((name, text), text) for name, text in changed.items()}
    node: RendezvousHandler | None = None
    try:
        with pytest.raises(RendezvousConnectionError, match=f"^instep: .*{said}") as refused:
            node = _met_alone(guarded, conf)
    finally:
        if node is not None:
            node.shutdown()
    assert isinstance(refused.value, SystemExit)
    assert PASSWORD not in str(refused.value)


def _met_alone(server: EtcdServer, conf: dict[str, str]) -> RendezvousHandler:
    node = handler(server.endpoint, "refused", conf, 1)
    try:
        node.next_rendezvous()
    except BaseException:
        node.shutdown()
        raise
    return node


def test_plain_text_is_not_spoken_to_an_etcd_with_tls(guarded: EtcdServer) -> None:
    with pytest.raises(RendezvousConnectionError, match="expects TLS but received plain text: use https://"):
        handler(f"http://127.0.0.1:{guarded.port}", "plain", {}, 1).next_rendezvous()
