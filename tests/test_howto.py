"""The programs in the pages do what the pages say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HOWTO = Path(__file__).resolve().parent.parent / "docs" / "howto"


def whole_programs() -> list[tuple[str, str]]:
    """Those that run by themselves: they call asyncio.run or bring their own etcd, and name no host of yours."""
    found = []
    for page in sorted(HOWTO.glob("*.md")):
        for number, text in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
            if ("asyncio.run(" in text or "EtcdServer()" in text) and "etcd-0" not in text:
                found.append((f"{page.name}-{number}", text))
    return found


@pytest.mark.parametrize(("name", "text"), whole_programs(), ids=lambda item: item if len(item) < 40 else "")
def test_each_program_in_the_documentation_runs(name: str, text: str, tmp_path: Path) -> None:
    if "import torch" in text:
        pytest.importorskip("torch")
    program = tmp_path / "program.py"
    program.write_text(text)
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "yes" in ended.stdout


def test_the_documentation_contains_the_program() -> None:
    assert whole_programs()
