"""The development environment is pinned, and what is needed at run time can be listed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


LOCKS = {"requirements-dev.lock": "wanted", "requirements-docs.lock": "wanted_for_docs"}
"""Each lock file, with the function of scripts/lock.py that says what it must contain."""


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_the_lock_file_has_hashes_and_no_host_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    packages = re.split(r"\n(?=[a-z])", re.sub(r"^# .*\n", "", text, flags=re.MULTILINE).strip())
    assert len(packages) > 30
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in text
    assert not re.search(r"^(torch|instep)\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_of_pyproject_is_in_the_lock_file(name: str) -> None:
    wanted = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, 'scripts'); import lock; print('\\n'.join(lock.{LOCKS[name]}()))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    locked = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / name).read_text(), re.MULTILINE))
    assert {re.split(r"[\[<>=]", text)[0] for text in wanted if text} <= locked


def test_the_bill_of_materials_lists_runtime_and_no_test_packages(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "sbom.py")], cwd=tmp_path, check=True, capture_output=True)
    document = json.loads((tmp_path / "dist" / "instep.cdx.json").read_text())
    names = {part["name"] for part in document["components"]}
    assert {"grpcio", "protobuf", "pydantic", "typer", "rich"} <= names
    assert not names & {"pytest", "torch", "mypy"}
    assert all(part["purl"].startswith("pkg:pypi/") for part in document["components"])
