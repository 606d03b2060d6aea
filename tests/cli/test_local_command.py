"""`instep local` starts, finds and stops a real etcd."""

from __future__ import annotations

from pathlib import Path

from command import environment, instep

from instep.etcd_server.ports import free_ports


def test_a_local_etcd_is_started_used_and_stopped(tmp_path: Path) -> None:
    env = environment({"XDG_DATA_HOME": str(tmp_path)})
    try:
        started = instep("local", "--detach", "--json", "--port", str(free_ports(1, "127.0.0.1")[0]), env=env)
        assert started.code == 0, started.err
        assert instep("local", "--detach", env=env).out.strip() == started.json["endpoint"]
        assert instep("set", "gpt-a", "lr=1", "--create", env=env).code == 0
        assert instep("runs", "--json", env=env).json["runs"][0]["name"] == "gpt-a"
    finally:
        stopped = instep("local", "--stop", env=env)
    assert (stopped.code, stopped.out) == (0, "stopped\n")
    assert instep("local", "--stop", "--json", env=env).json == {"stopped": False}
