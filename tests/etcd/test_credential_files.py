"""Files with secrets: which owners and modes are accepted, and what is refused before it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instep.errors import SettingsError
from instep.etcd import Client, Credentials
from instep.etcd._files import MAX_BYTES, is_exposed, read_file, read_secret

ROOT, USER = 0, 1000


@pytest.mark.parametrize("mode", [0o400, 0o600])
@pytest.mark.parametrize("owner", [ROOT, USER])
def test_a_secret_for_its_owner_alone_is_accepted(owner: int, mode: int) -> None:
    assert not is_exposed(owner, mode)


@pytest.mark.parametrize("mode", [0o440, 0o640])
def test_a_file_of_root_may_be_readable_by_its_group_as_kubernetes_mounts_it(mode: int) -> None:
    assert not is_exposed(ROOT, mode)
    assert is_exposed(USER, mode)


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o604, 0o660, 0o620, 0o610, 0o601, 0o602, 0o777])
@pytest.mark.parametrize("owner", [ROOT, USER])
def test_a_secret_that_others_can_read_or_a_group_can_write_is_refused(owner: int, mode: int) -> None:
    assert is_exposed(owner, mode)


def test_the_refusal_names_the_mode_the_fixes_and_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("secret")
    path.chmod(0o644)
    with pytest.raises(SettingsError, match=r"mode 0644, .*chmod 600 .*fsGroup.*INSTEP_ALLOW_READABLE_KEY=1"):
        Client(["etcd"], credentials=Credentials(user="root", password_file=str(path)))
    allowed = Credentials(user="root", password_file=str(path), allow_readable_file=True)
    assert allowed.read_password() == "secret"


def test_the_target_of_a_link_is_checked_as_in_a_mounted_secret(tmp_path: Path) -> None:
    """Kubernetes: tls.key -> ..data/tls.key, ..data -> ..2026_11_29."""
    folder = tmp_path / "..2026_11_29"
    folder.mkdir()
    (folder / "tls.key").write_text("secret")
    (tmp_path / "..data").symlink_to(folder.name)
    (tmp_path / "tls.key").symlink_to("..data/tls.key")
    (folder / "tls.key").chmod(0o400)
    assert read_secret(str(tmp_path / "tls.key"), "The key") == b"secret"
    (folder / "tls.key").chmod(0o444)
    with pytest.raises(SettingsError, match="mode 0444"):
        read_secret(str(tmp_path / "tls.key"), "The key")


def test_neither_a_pipe_nor_a_folder_nor_an_endless_file_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(SettingsError, match=r"is not a regular file|\(Is a directory\)"):
            read_file(str(path), "The CA file")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(SettingsError, match="is larger than 4 MiB"):
        read_file(str(large), "The CA file")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_file("a\0b", "The CA file")
