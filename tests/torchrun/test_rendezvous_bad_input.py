"""What cannot work ends torchrun with one sentence that names the cure, and what merely lasts is told in the log."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from async_support import run, until
from instep.errors import SettingsError
from instep.etcd import Client, Status
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Limits, Registration
from instep.testing import EtcdServer
from instep.torch._rendezvous.address import await_own_address, reaches_this_machine
from instep.torch._rendezvous.client import find_other_cluster
from instep.torch._rendezvous.handler import create_handler
from instep.torch._rendezvous.wait_log import log_while_waiting, what_is_missing

RUN = "bad-input"
NOWHERE = "no-such-host.invalid"
QUICK = {"join_timeout": "20", "last_call_timeout": "0.2", "connect_timeout": "0.5"}


def params(endpoint: str, least: int = 1, most: int = 1, /, *, run_id: str = RUN, **conf: str) -> RendezvousParameters:
    local_addr = conf.pop("local_addr", "127.0.0.1")
    return RendezvousParameters("etcd3", endpoint, run_id, least, most, local_addr=local_addr, **{**QUICK, **conf})


def sentence(given: RendezvousParameters, kind: type[RendezvousError]) -> str:
    """What torchrun prints: it ends with the error's text on stderr, and exit code 1."""
    handler = create_handler(given)
    try:
        with pytest.raises(kind) as raised:
            handler.next_rendezvous()
    finally:
        handler.shutdown()
    assert isinstance(raised.value, SystemExit)
    text = raised.value.code
    assert isinstance(text, str)
    assert text.startswith("instep: ")
    assert "\n" not in text
    assert str(raised.value) == text
    return text


def connection_sentence(given: RendezvousParameters) -> str:
    return sentence(given, RendezvousConnectionError)


def write(etcd: EtcdServer, *pairs: tuple[str, str]) -> None:
    async def main() -> None:
        async with Client([etcd.endpoint]) as client:
            for key, value in pairs:
                await client.put(key, value)

    run(main())


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("colour", "red", "which etcd3 does not know: it knows join_timeout, last_call_timeout, .*password_file$"),
        ("ssl_cert", "/c", "has 'ssl_cert', which is 'cert' with etcd3"),
        ("ssl_cert_key", "/c", "which is 'key' with etcd3"),
        ("ca_cert", "/c", "which is 'cacert' with etcd3"),
        ("etcd_prefix", "/p", "which is 'namespace' with etcd3"),
        ("password", "secret", "which is 'password_file' with etcd3"),
        ("timeout", "60", "which is 'join_timeout' with etcd3"),
        ("protocol", "https", "does not need: write the endpoints as https://host:2379"),
        ("is_host", "1", "does not need: no agent hosts the rendezvous"),
        ("store_type", "file", "does not need: each round has a TCPStore of its own"),
        ("heartbeat_timeout", "5", "leases take its place"),
        ("join_timeout", "soon", "has join_timeout=soon: it must be a number of seconds, such as 30"),
        ("join_timeout", "", "it must be a number of seconds"),
        ("join_timeout", "nan", "join_timeout=nan: it must be between 0.1 and 604800 seconds"),
        ("close_timeout", "0", "it must be between 0.1 and 604800 seconds"),
        ("last_call_timeout", "-1", "it must be between 0 and 604800 seconds"),
        ("keep_alive_max_attempt", "2.5", "it must be a whole number, such as 3"),
        ("keep_alive_max_attempt", "0", "it must be between 1 and 1000"),
        ("keep_alive_interval", "0.1", "is 0 s: it is the time until a dead node is noticed, and must be between 2"),
        ("namespace", "training", "the namespace 'training' is not usable: it starts with a slash"),
        ("password_file", "/p", "but no user: .*; torchrun takes user and password_file in --rdzv-conf too$"),
        ("user", "ann", "user 'ann' has no password: .*; torchrun takes password_file in --rdzv-conf too$"),
        ("cert", "/c", "needs its key and the reverse: .*; torchrun takes cert and key in --rdzv-conf too$"),
        ("cacert", "/c", "says http://: use https://, or unset"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_with_its_cure(name: str, value: str, said: str) -> None:
    given = params("http://127.0.0.1:1", **{name: value})
    with pytest.raises(RendezvousConnectionError, match=f"^instep: .*{said}"):
        create_handler(given)


def test_what_torchrun_adds_to_the_options_by_itself_is_no_option_of_ours() -> None:
    made = RendezvousParameters("etcd3", "127.0.0.1:1", RUN, 1, 1, "127.0.0.1", timeout=900)
    assert create_handler(made).get_run_id() == RUN


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("ftp://h:1", "the endpoint 'ftp://h:1' has the scheme 'ftp': use http:// or https://"),
        ("http://h:1,https://g:2", "mixes http and https"),
        ("h:99999", "has no usable host or port: give host:port with a port up to 65535"),
        ("h:1/v2", "is not host:port, for example https://etcd-0:2379"),
        (",", "names no etcd endpoint"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_named(endpoint: str, said: str) -> None:
    with pytest.raises(RendezvousConnectionError, match=f"^instep: .*{said}"):
        create_handler(params(endpoint))


def test_without_any_endpoint_the_ways_to_give_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for variable in ("INSTEP_ETCD", "ETCDCTL_ENDPOINTS"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        RendezvousConnectionError, match=r"set INSTEP_ETCD .*; torchrun takes it as --rdzv-endpoint too$"
    ):
        create_handler(params(""))


def test_what_the_command_line_says_of_etcd_holds_for_the_scripts_unless_they_are_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("INSTEP_ETCD", "INSTEP_NAMESPACE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("INSTEP_USER", "the-script")
    conf = {"namespace": "/team-a", "user": "the-agent", "password_file": "secret"}
    create_handler(RendezvousParameters("etcd3", "https://etcd-0:2379", "gpt-a", 1, 1, **conf))
    told = [os.environ[name] for name in ("INSTEP_ETCD", "INSTEP_NAMESPACE", "INSTEP_USER")]
    assert told == ["https://etcd-0:2379", "/team-a", "the-script"]


def test_a_run_id_that_can_be_no_key_is_refused() -> None:
    with pytest.raises(RendezvousConnectionError, match="--rdzv-id becomes part of etcd's keys: the run name 'a/b' is"):
        create_handler(params("h", run_id="a/b"))


# -- no etcd there ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Page(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def other_grpc_server() -> Iterator[int]:
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_port_where_nobody_listens_is_told_at_once_and_given_up_in_time(caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    said = connection_sentence(params("http://127.0.0.1:1", connect_timeout="4"))
    assert "etcd did not answer within 4 s" in said
    assert "at http://127.0.0.1:1 (connection refused): no answer" in said
    assert time.monotonic() - began < 8
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told.startswith("etcd does not answer, retrying for 4 s (connect_timeout): ")


def test_a_name_without_port_means_etcds_own_port_and_one_that_nobody_has_is_named() -> None:
    said = connection_sentence(params(NOWHERE))
    assert f"http://{NOWHERE}:2379 (the host name does not resolve)" in said


def test_a_server_that_is_no_etcd_is_told_apart() -> None:
    with web_server() as port:
        assert f"http://127.0.0.1:{port} (the server there is not etcd)" in connection_sentence(
            params(f"127.0.0.1:{port}")
        )
    with other_grpc_server() as port:
        said = connection_sentence(params(f"127.0.0.1:{port}"))
        assert f"The server at http://127.0.0.1:{port} is not an etcd v3 server" in said
    with silent_server() as port:
        assert f"http://127.0.0.1:{port} (no connection: nothing answers there)" in connection_sentence(
            params(f"127.0.0.1:{port}")
        )


def test_tls_is_not_spoken_to_an_etcd_in_plain_text(etcd: EtcdServer) -> None:
    said = connection_sentence(params(f"https://127.0.0.1:{etcd.port}"))
    assert "expects plain text but received TLS: use http://" in said


def test_endpoints_of_two_clusters_are_refused_while_both_answer(etcd: EtcdServer, namespace: str) -> None:
    with EtcdServer() as other:
        both = f"{etcd.endpoint},{other.endpoint}"
        said = connection_sentence(params(both, namespace=namespace, connect_timeout="10"))
    assert f"{etcd.endpoint} and {other.endpoint} are members of different etcd clusters" in said
    known, silent = Status(endpoint="a", cluster_id=1), Status(endpoint="b")
    assert find_other_cluster((known, silent, known)) is None


def test_a_member_that_is_down_keeps_nobody_out(etcd: EtcdServer, namespace: str) -> None:
    handler = create_handler(params(f"127.0.0.1:1,{etcd.endpoint}", namespace=namespace, connect_timeout="10"))
    assert handler.next_rendezvous().world_size == 1
    assert handler.shutdown()


# -- this node --------------------------------------------------------------------------------------------------------


def test_an_address_of_another_machine_is_refused_after_some_tries(
    etcd: EtcdServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = connection_sentence(params(etcd.endpoint, namespace=namespace, local_addr=NOWHERE))
    assert f"cannot reach itself as '{NOWHERE}', so the others cannot either" in said
    assert "set --local-addr to an address of this machine" in said
    assert f"this node cannot reach itself as '{NOWHERE}': retrying for 0.5 s" in caplog.text
    with pytest.raises(SettingsError, match="a name that can be none"):
        await_own_address("a name that can be none", 0)


def test_every_way_to_this_machine_is_found() -> None:
    assert reaches_this_machine("127.0.0.1")
    assert reaches_this_machine("localhost")
    assert not reaches_this_machine("")
    assert not reaches_this_machine("a" * 300)


# -- what others have written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ['{"format":2,"epoch":1,"number":1}', "garbage", "[" * 100_000])
def test_a_round_of_another_version_is_left_alone(etcd: EtcdServer, namespace: str, document: str) -> None:
    keys = RendezvousKeys(namespace, RUN)
    write(etcd, (keys.round, document))
    said = sentence(params(etcd.endpoint, namespace=namespace, connect_timeout="10"), RendezvousStateError)
    assert f"was written by another version of Instep ({keys.round} cannot be read)" in said
    assert "use the same version on all nodes, or another --rdzv-id" in said


def test_other_documents_that_cannot_be_read_stop_nobody(etcd: EtcdServer, namespace: str) -> None:
    keys = RendezvousKeys(namespace, RUN)
    odd = (f"{keys.nodes}abc", keys.nodes, f"{keys.nodes}a/b", keys.closed, keys.refused("abc"), keys.gone_of("abc"))
    write(etcd, *((key, "garbage") for key in odd))
    handler = create_handler(params(etcd.endpoint, namespace=namespace, connect_timeout="10"))
    assert handler.next_rendezvous().world_size == 1
    assert handler.shutdown()


def test_a_job_of_the_same_id_and_another_size_is_refused(etcd: EtcdServer, namespace: str) -> None:
    first = create_handler(params(etcd.endpoint, namespace=namespace, connect_timeout="10"))
    assert first.next_rendezvous().world_size == 1
    said = sentence(params(etcd.endpoint, 2, 2, namespace=namespace, connect_timeout="10"), RendezvousStateError)
    assert "the run has --nnodes=1:1 and this node --nnodes=2:2" in said
    assert "give all nodes of a run the same, and each run an --rdzv-id of its own" in said
    assert not first.is_closed()
    assert first.num_nodes_waiting() == 0
    assert first.shutdown()


def test_a_job_of_the_same_id_and_size_is_a_spare_that_says_it_ran_nothing(
    etcd: EtcdServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = params(etcd.endpoint, namespace=namespace, connect_timeout="10")
    first, second = create_handler(given), create_handler(given)
    first.next_rendezvous()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        joins = pool.submit(second.next_rendezvous)
        _until_registered(etcd, RendezvousKeys(namespace, RUN), 2)
        assert first.num_nodes_waiting() == 0
        assert first.shutdown()
        with pytest.raises(RendezvousClosedError) as ended:
            joins.result(20)
    second.shutdown()
    assert isinstance(ended.value, SystemExit)
    assert ended.value.code == 0
    assert "This node was a spare: it was not needed and ran nothing." in caplog.text


def test_too_few_nodes_are_told_when_time_is_up(etcd: EtcdServer, namespace: str) -> None:
    given = params(etcd.endpoint, 2, 3, namespace=namespace, connect_timeout="10", join_timeout="1")
    said = sentence(given, RendezvousTimeoutError)
    assert "start the other nodes of --nnodes=2:3, or raise join_timeout in --rdzv-conf" in said


def _until_registered(etcd: EtcdServer, keys: RendezvousKeys, count: int) -> None:
    async def main() -> None:
        async with Client([etcd.endpoint]) as client:

            async def registered() -> bool:
                return len((await client.range(keys.nodes)).kvs) == count

            await until(registered)

    run(main())


# -- what is waited for -----------------------------------------------------------------------------------------------


def one(*, epoch: int = 1, asks: bool = True) -> Registration:
    return Registration(epoch=epoch, host="h", pid=1, limits=LIMITS, asks=asks)


LIMITS = Limits(min_nodes=2, max_nodes=4)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([one()], "1 node of --nnodes=2:4: waiting for 1 more"),
        ([one(), one()], "2 nodes of --nnodes=2:4: waiting 30 s (last_call_timeout) for others"),
        ([one()] * 4, None),
        ([one(), one(asks=False)], "waiting until the training nodes (1 node) stop their workers and join this one"),
        (
            [one(epoch=2), one(asks=False)],
            "waiting until the nodes of the ended run have left: 1 node registered",
        ),
    ],
)
def test_what_is_missing_is_said_in_numbers(there: list[Registration], said: str | None) -> None:
    assert what_is_missing(there, LIMITS, 30.0) == said


def test_a_node_that_waits_says_what_for_and_does_not_repeat_itself_often(
    etcd: EtcdServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = RendezvousKeys(namespace, RUN)

    async def main() -> None:
        async with asyncio.timeout(20), Client([etcd.endpoint]) as client:
            await client.put(f"{keys.nodes}a", one().encode())
            await client.put(f"{keys.nodes}b", "garbage")
            node = RendezvousNode(client, keys, LIMITS, host="h", pid=1, ttl_s=10, last_call_s=1)
            waiting = asyncio.create_task(
                log_while_waiting(_said(caplog, 2), client, keys, node, LIMITS, last_call_s=1, first_s=0.1)
            )
            began = time.monotonic()
            assert await waiting == "a seat"
            assert time.monotonic() - began >= 0.3

    run(main())
    assert caplog.messages == [f"rendezvous of {RUN}: 1 node of --nnodes=2:4: waiting for 1 more"] * 2


def test_a_node_that_waits_as_a_spare_says_that(
    etcd: EtcdServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys, limits = RendezvousKeys(namespace, RUN), Limits(min_nodes=1, max_nodes=1)
    address = Address(host="h", port=1)

    async def main() -> None:
        async with Client([etcd.endpoint]) as client:
            first, second = (
                RendezvousNode(client, keys, limits, host="h", pid=1, ttl_s=10, last_call_s=1) for _ in range(2)
            )
            async with first, second:
                await first.seat(address, cause="new", timeout_s=20)
                seat = second.seat(address, cause="new", timeout_s=20)
                waiting = asyncio.create_task(
                    log_while_waiting(seat, client, keys, second, limits, last_call_s=1, first_s=0.1)
                )
                await _said(caplog, 1)
                await first.close()
                assert (await waiting).number == 2

    run(main())
    assert "this node is a spare: round 1 has all of its 1 nodes; it waits until one of them leaves" in caplog.text


async def _said(caplog: pytest.LogCaptureFixture, count: int) -> str:
    await until(lambda: len(caplog.messages) >= count)
    return "a seat"


# -- as torchrun ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["an option", "no etcd", "another version"])
def test_torchrun_ends_with_the_sentence_and_without_a_traceback(
    etcd: EtcdServer, namespace: str, tmp_path: Path, trouble: str
) -> None:
    endpoint, conf, cure = {
        "an option": (etcd.endpoint, "ssl_cert=/c", "which is 'cert' with etcd3"),
        "no etcd": ("http://127.0.0.1:1", "connect_timeout=0.5", "check that etcd runs there"),
        "another version": (etcd.endpoint, "connect_timeout=20", "use the same version on all nodes"),
    }[trouble]
    write(etcd, (RendezvousKeys(namespace, RUN).round, '{"format":2}'))
    script = tmp_path / "script.py"
    script.write_text("print('trained')\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=etcd3", f"--rdzv-endpoint={endpoint}"),
            *(f"--rdzv-conf={conf},namespace={namespace}", f"--rdzv-id={RUN}", "--nnodes=1:2", str(script)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    ours = [line for line in ended.stderr.splitlines() if line.startswith("instep: ")]
    assert len(ours) == 1, ended.stderr
    assert cure in ours[0]
    assert "Traceback" not in ended.stderr
