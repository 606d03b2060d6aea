"""A Checkpointer on real ranks: a restore returns what was saved, whichever process was killed and whatever the disk
did."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chaos.harness.fork_server import ForkServer

from run.harness import TrainingRun, wait_for
from run.saver_team import Team, Worker
from run.test_commands_live import order, wait_declined

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SCRIPT = Path(__file__).with_name("torch_saver.py")


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path, fork_server: ForkServer) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved", SCRIPT, fork_server)
    yield team
    team.close()


@pytest.fixture
def fragile_team(fragile_training: TrainingRun, tmp_path: Path, fork_server: ForkServer) -> Iterator[Team]:
    """On its own etcd server."""
    team = Team(fragile_training, tmp_path / "saved", SCRIPT, fork_server)
    yield team
    team.close()


def all_do(team: list[Worker], do: str, **arguments: Any) -> list[dict[str, Any]]:
    """Sends to all ranks at once, for what one rank cannot do alone."""
    for worker in team:
        worker.tell(do, **arguments)
    answers = [worker.answer() for worker in team]
    for answer in answers:
        assert "error" not in answer, answer
    return answers


def the_one(answers: list[dict[str, Any]], name: str) -> Any:
    """The answers of all ranks."""
    assert all(answer[name] == answers[0][name] for answer in answers), answers
    return answers[0][name]


def leave(team: Team) -> None:
    """All ranks end well; the next team is another view."""
    for worker in team.workers:
        worker.tell("close")
    for worker in team.workers:
        worker.answer()
        worker.close()
    team.workers.clear()


def log_of(*ranks: Worker) -> str:
    """Of ranks that have ended."""
    return "".join(line for worker in ranks for line in worker.log)


def saved_in(team: Team) -> list[str]:
    return sorted(path.name for path in team.folder.iterdir())


def test_a_restore_returns_what_was_saved_bit_for_bit(team: Team) -> None:
    """Also on another number of ranks. But live values win, and the log names the differences."""
    team.training.put("lr", "0.25")
    ranks = team.join("aab")
    built = all_do(ranks, "build")
    nothing = all_do(ranks, "restore")
    assert (the_one(nothing, "next"), the_one(nothing, "hash")) == (0, built[0]["hash"])
    all_do(ranks, "train", start=0, steps=7)
    saved = all_do(ranks, "keep", step=6)
    assert the_one(saved, "saved") is True
    after = the_one(all_do(ranks, "train", start=7, steps=5), "hash")
    leave(team)

    ranks = team.join("ab")
    all_do(ranks, "build", seed=1)
    restored = all_do(ranks, "restore")
    assert (the_one(restored, "next"), the_one(restored, "hash")) == (7, saved[0]["hash"])
    assert the_one(restored, "lr") == saved[0]["lr"]
    assert the_one(all_do(ranks, "train", start=7, steps=5), "hash") == after
    leave(team)
    assert "was saved by 3 ranks and 2 resume from it" in log_of(ranks[0])
    assert "the live values take precedence" not in log_of(ranks[0])

    team.training.put("lr", "0.125")
    ranks = team.join("a")
    all_do(ranks, "build", seed=1)
    assert the_one(all_do(ranks, "restore"), "lr") == saved[0]["lr"] / 2
    leave(team)
    assert "the live values take precedence" in log_of(ranks[0])
    assert "lr 0.125 (checkpoint: 0.25)" in log_of(ranks[0])


def test_a_damaged_checkpoint_is_skipped_by_all_ranks(team: Team) -> None:
    """Damaged on every rank's disk; the others' findings do not matter. If no good checkpoint is left, nothing is
    loaded."""
    ranks = team.join("ab")
    all_do(ranks, "build")
    hashes: dict[int, str] = {}
    for step in (0, 1, 2):
        all_do(ranks, "train", start=step, steps=1)
        hashes[step] = the_one(all_do(ranks, "keep", step=step), "hash")
    leave(team)
    first, second, third = (team.folder / name for name in saved_in(team))
    truncate(third / "optimizer.pt")
    manifest = second / "instep-manifest.json"
    manifest.write_text(manifest.read_text().replace('"bytes": ', '"bytes": 1'))

    ranks = team.join("ab")
    all_do(ranks, "build", seed=1)
    restored = all_do(ranks, "restore")
    assert the_one(restored, "next") == 1
    assert the_one(restored, "hash") == hashes[0]
    leave(team)
    for worker in ranks:
        assert "optimizer.pt was truncated" in log_of(worker)
        assert "instep-manifest.json was changed" in log_of(worker)

    shutil.rmtree(first)
    (rank,) = ranks = team.join("b")
    built = all_do(ranks, "build", seed=1)
    answer = rank.ask("restore")
    assert answer["error"] == "CheckpointError"
    assert "none of the checkpoints of 'gpt-a' can be used" in answer["text"]
    assert f"{first.name} is missing" in answer["text"]
    assert rank.ask("state")["hash"] == built[0]["hash"]


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def test_a_saver_that_is_killed_during_a_save_is_replaced_at_the_same_step(team: Team, tmp_path: Path) -> None:
    """Its directory is deleted after the following save."""
    hold = tmp_path / "hold"
    ranks = team.join("aab")
    all_do(ranks, "build", hold=str(hold))
    all_do(ranks, "train", start=0, steps=3)
    leader, others = team.leader(*ranks)
    hold.touch()
    for worker in ranks:
        worker.tell("keep", step=2)
    wait_for(hold.with_suffix(".seen").exists, "the save to begin")
    wait_for(lambda: saved_in(team), "its directory")
    wait_for(lambda: team.training.key("state/saving"), "the news of it")
    leader.kill()
    hold.unlink()
    answers = [worker.answer() for worker in others]
    assert the_one(answers, "saved") is True, [worker.log for worker in others]
    (committed,) = team.training.keys("checkpoints/2-")
    assert saved_in(team) == [f"step-{committed.rpartition('/')[2]}"]
    for worker in others:
        worker.kill()
        worker.close()
    leader.close()
    team.workers.clear()

    ranks = team.join("ab")
    all_do(ranks, "build", hold=str(hold), seed=1)
    restored = all_do(ranks, "restore")
    assert the_one(restored, "next") == 3
    assert the_one(restored, "hash") == answers[0]["hash"]


def test_a_saver_stopped_beyond_its_lease_learns_that_another_saved_the_step(team: Team, tmp_path: Path) -> None:
    """Although its directory was deleted during the save."""
    hold = tmp_path / "hold"
    ranks = team.join("ab")
    all_do(ranks, "build", hold=str(hold))
    all_do(ranks, "train", start=0, steps=3)
    leader, (other,) = team.leader(*ranks)
    hold.touch()
    for worker in ranks:
        worker.tell("keep", step=2)
    with stopped_in_mid_save(team, leader, hold):
        saved = other.answer()
    answer = leader.answer()
    assert (saved["saved"], answer["saved"]) == (True, True), leader.log
    assert len(team.training.keys("checkpoints/2-")) == len(saved_in(team)) == 1
    leave(team)
    assert "was removed while it was written" in log_of(leader)
    assert "training continues without this checkpoint" not in log_of(leader)


def test_a_background_save_whose_directory_was_cleaned_away_is_given_up(team: Team, tmp_path: Path) -> None:
    """Because a newer leader has saved since. The training continues."""
    hold = tmp_path / "hold"
    ranks = team.join("ab")
    all_do(ranks, "build", hold=str(hold), background=True)
    all_do(ranks, "train", start=0, steps=3)
    leader, (other,) = team.leader(*ranks)
    hold.touch()
    leader.tell("keep", step=2)
    with stopped_in_mid_save(team, leader, hold):
        wait_for(lambda: other.ask("hear")["leads"], "the other to lead")
        all_do([other], "train", start=3, steps=1)
        all_do([other], "keep", step=3)
        assert other.ask("wait")["saved"] is True
    assert leader.answer()["saved"] is True  # it was begun
    assert leader.ask("wait")["saved"] is False
    all_do([leader], "train", start=3, steps=1)
    assert len(saved_in(team)) == 1
    leave(team)
    assert "was removed while it was written" in log_of(leader)


@contextmanager
def stopped_in_mid_save(team: Team, leader: Worker, hold: Path) -> Iterator[None]:
    """The leader and its agent, as long as it lasts."""
    wait_for(hold.with_suffix(".seen").exists, "the save to begin")
    frozen = [team.training.agent_pid("ab"[leader.rank]), leader.process.pid]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    hold.unlink()
    try:
        yield
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.long
def test_whenever_a_saver_is_killed_the_newest_committed_checkpoint_is_restored_whole(team: Team) -> None:
    """20 times, at a random moment of a save; the remaining rank may have to save the step again, then all end."""
    dice = random.Random(7)
    hashes: dict[int, str] = {-1: ""}
    newest = -1
    for round_number in range(20):
        ranks = team.join("aa" if round_number % 2 else "ab")
        all_do(ranks, "build", seed=1, ballast=2_000_000)
        restored = all_do(ranks, "restore")
        assert the_one(restored, "next") == newest + 1
        assert newest < 0 or the_one(restored, "hash") == hashes[newest]
        step = newest + 2
        hashes[step] = the_one(all_do(ranks, "train", start=newest + 1, steps=2), "hash")
        leader, (other,) = team.leader(*ranks)
        for worker in ranks:
            worker.tell("keep", step=step)
        time.sleep(dice.uniform(0, 0.2))  # the moment of the fault
        leader.kill()
        answer = other.answer()
        newest = int(team.training.key("checkpoints/latest")["step"])
        assert answer["saved"] is True, other.log
        assert newest == step
        for worker in ranks:
            worker.kill()
            worker.close()
        team.workers.clear()


def test_the_last_ones_are_kept_and_the_first_of_every_n_steps(team: Team) -> None:
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", keep=2, keep_every=4)
    stranger = team.folder / "step-1-1"
    for step in range(8):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
        stranger.mkdir(exist_ok=True)  # of a run that this one does not know: it has none of our labels
    steps = [int(name.split("-")[0]) for name in rank.ask("list")["ids"]]
    assert steps == [7, 6, 3]
    assert {int(name.split("-")[1]) for name in saved_in(team) if name != stranger.name} == set(steps)
    assert stranger.exists()


def test_with_and_without_ddp_it_is_one_checkpoint(team: Team, tmp_path: Path) -> None:
    ranks = team.join("aa")
    all_do(ranks, "build", wrap="ddp", world=str(tmp_path / "world"))
    all_do(ranks, "train", start=0, steps=3)
    saved = all_do(ranks, "keep", step=2)
    after = the_one(all_do(ranks, "train", start=3, steps=2), "hash")
    all_do(ranks, "part")
    leave(team)

    ranks = team.join("a")
    all_do(ranks, "build", wrap="compile", seed=1)
    restored = all_do(ranks, "restore")
    assert (restored[0]["next"], restored[0]["hash"]) == (3, saved[0]["hash"])
    assert the_one(all_do(ranks, "train", start=3, steps=2), "hash") == after
    all_do(ranks, "keep", step=4)
    leave(team)

    ranks = team.join("aa")
    all_do(ranks, "build", wrap="ddp", world=str(tmp_path / "another"), seed=2)
    restored = all_do(ranks, "restore")
    assert (the_one(restored, "next"), the_one(restored, "hash")) == (5, after)
    all_do(ranks, "part")


def test_a_background_save_is_committed_at_a_later_boundary_once_it_is_complete(team: Team) -> None:
    """It holds the state at the call of save, whatever the training has done since."""
    ranks = team.join("aa")
    all_do(ranks, "build", background=True, ballast=5_000_000)
    all_do(ranks, "train", start=0, steps=3)
    saved = all_do(ranks, "keep", step=2)
    assert team.training.keys("checkpoints/") == []
    step = 3
    while not team.training.keys("checkpoints/"):
        all_do(ranks, "train", start=step, steps=1)
        step += 1
    (path,) = team.folder.iterdir()
    assert (path / "instep-manifest.json").exists()
    all_do(ranks, "keep", step=step - 1)
    leave(team)  # which finishes what is still being written
    latest = team.training.key("checkpoints/latest")
    assert latest["step"] == step - 1
    shutil.rmtree(team.folder / f"step-{latest['id']}")

    ranks = team.join("ab")
    all_do(ranks, "build", ballast=5_000_000, seed=1)
    restored = all_do(ranks, "restore")
    assert (the_one(restored, "next"), the_one(restored, "hash")) == (3, saved[0]["hash"])


def test_a_save_that_the_disk_refuses_costs_the_checkpoint_and_not_the_training(team: Team) -> None:
    ranks = team.join("aa")
    all_do(ranks, "build", ballast=100_000)
    all_do(ranks, "train", start=0, steps=1)
    assert the_one(all_do(ranks, "keep", step=0), "saved") is True
    all_do(ranks, "limit_files", size=100_000)
    all_do(ranks, "train", start=1, steps=1)
    assert the_one(all_do(ranks, "keep", step=1), "saved") is False
    assert len(saved_in(team)) == 1
    all_do(ranks, "limit_files", size=-1)
    all_do(ranks, "train", start=2, steps=1)
    assert the_one(all_do(ranks, "keep", step=2), "saved") is True
    leave(team)
    assert "File too large" in log_of(*ranks)
    assert "training continues without this checkpoint" in log_of(*ranks)


@pytest.mark.parametrize(("options", "reason"), [("size=1m", "No space left"), ("size=8m,ro", "Read-only file system")])
def test_a_full_or_read_only_file_system_is_survived(team: Team, options: str, reason: str) -> None:
    team.folder.mkdir()
    shell = f'mount -t tmpfs -o {options} none "{team.folder}" && exec "$@"'
    team.prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, "sh")
    if subprocess.run([*team.prefix, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here")
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", ballast=1_000_000)
    all_do(ranks, "train", start=0, steps=1)
    assert the_one(all_do(ranks, "keep", step=0), "saved") is False
    wait_for(lambda: any(reason in line for line in rank.log), "the reason")
    all_do(ranks, "train", start=1, steps=1)


def test_a_checkpoint_that_cannot_be_loaded_is_refused_with_the_fix(team: Team, tmp_path: Path) -> None:
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", ballast=10, odd=True)
    all_do(ranks, "keep", step=0)
    leave(team)
    assert "the state of heavy holds __main__._Odd" in log_of(rank)

    (rank,) = ranks = team.join("a")
    for parts, problem in (
        ({"ballast": 10}, "_Odd: torch loads that only after torch.serialization.add_safe_globals"),
        ({"ballast": 10, "hold": "/"}, "has no slow, it has model, optimizer, scheduler, heavy"),
        ({"sharded": True, "world": str(tmp_path / "world")}, "pass sharded=False to the Checkpointer"),
    ):
        all_do(ranks, "build", **parts)
        answer = rank.ask("restore")
        assert answer["error"] == "CheckpointError"
        assert problem in answer["text"]
    all_do(ranks, "build", ballast=10, weights_only=False)
    assert rank.ask("restore")["next"] == 1
    all_do(ranks, "part")


def test_shards_of_all_ranks_are_one_checkpoint_for_any_number_of_ranks(team: Team, tmp_path: Path) -> None:
    """Saved at once or in the background; each rank checks a part of the files, and the findings of one count for
    all."""
    shards = {"wrap": "fsdp", "sharded": True}
    ranks = team.join("ab")
    all_do(ranks, "build", **shards, world=str(tmp_path / "one"), keep=2)
    all_do(ranks, "train", start=0, steps=3)
    all_do(ranks, "keep", step=1)
    first = all_do(ranks, "keep", step=2)
    assert the_one(first, "saved") is True
    after = the_one(all_do(ranks, "train", start=3, steps=2), "hash")
    all_do(ranks, "build", **shards, seed=1, background=True, keep=2)
    second = all_do(ranks, "keep", step=4)
    all_do(ranks, "train", start=5, steps=3)
    assert the_one(all_do(ranks, "wait"), "saved") is True
    newest = team.training.key("checkpoints/latest")
    assert newest["step"] == 4
    assert len(saved_in(team)) == 2
    all_do(ranks, "part")
    leave(team)

    ranks = team.join("a")
    all_do(ranks, "build", **shards, world=str(tmp_path / "two"), seed=2)
    restored = all_do(ranks, "restore")
    assert (the_one(restored, "next"), the_one(restored, "hash")) == (5, second[0]["hash"])
    all_do(ranks, "part")
    leave(team)

    truncate(team.folder / f"step-{newest['id']}" / "__1_0.distcp")  # which only rank 1 checks
    ranks = team.join("ab")
    all_do(ranks, "build", **shards, world=str(tmp_path / "three"), seed=2)
    restored = all_do(ranks, "restore")
    assert (the_one(restored, "next"), the_one(restored, "hash")) == (3, first[0]["hash"])
    assert the_one(all_do(ranks, "train", start=3, steps=2), "hash") == after
    all_do(ranks, "part")


def test_all_ranks_restore_a_checkpoint_at_the_same_step(team: Team) -> None:
    """A damaged one is declined with the reason, and no rank goes back."""
    ranks = team.join("ab")
    all_do(ranks, "build")
    all_do(ranks, "train", start=0, steps=3)
    saved = all_do(ranks, "keep", step=2)
    after = the_one(all_do(ranks, "train", start=3, steps=2), "hash")
    all_do(ranks, "keep", step=4)
    second, first = ranks[0].ask("list")["ids"]
    truncate(team.folder / f"step-{second}" / "model.pt")
    for worker in ranks:
        worker.tell("train_until_back", start=5)
    declined = wait_declined(team.training, order(team.training, "restore", name=second))
    assert "model.pt was truncated" in declined
    order(team.training, "restore", name=first)
    back = [worker.answer() for worker in ranks]
    assert (the_one(back, "next"), the_one(back, "hash")) == (3, saved[0]["hash"])
    assert the_one(all_do(ranks, "train", start=3, steps=2), "hash") == after
    assert the_one(all_do(ranks, "keep", step=4), "saved") is True
    assert ranks[0].ask("list")["newest"]["lineage"][0] == first


def test_a_save_during_an_outage_delays_training_for_seconds_only(fragile_team: Team, tmp_path: Path) -> None:
    """When etcd is back, the agent commits it, or it is refused because its lease has ended and then deleted."""
    team, hold = fragile_team, tmp_path / "hold"
    ranks = team.join("ab")
    all_do(ranks, "build", hold=str(hold))
    all_do(ranks, "train", start=0, steps=1)
    hold.touch()
    for worker in ranks:
        worker.tell("keep", step=0)
    wait_for(lambda: team.training.key("state/saving"), "the save to be known")
    server = team.training.server
    server.pause()
    try:
        hold.unlink()
        for answer in [worker.answer() for worker in ranks]:
            assert answer["saved"] is False
            assert answer["took_s"] < 20
    finally:
        server.resume()
    all_do(ranks, "train", start=1, steps=1)
    step = 1
    while not the_one(all_do(ranks, "keep", step=step), "saved"):
        step += 1
        all_do(ranks, "train", start=step, steps=1)
    committed = {Path(key).name for key in team.training.keys("checkpoints/")} - {"latest"}
    assert saved_in(team) == sorted(f"step-{name}" for name in committed)
