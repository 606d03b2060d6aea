"""No decision is made by the wall clock: it may be stepped while a run trains, and hosts' clocks disagree."""

from __future__ import annotations

import ast
from pathlib import Path

import instep

SOURCE = Path(instep.__file__).resolve().parent

WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}

FOR_PEOPLE = {
    "agent/checkpoint_registry.py": "when a save failed, for history",
    "agent/failures.py": "when a rank failed, for status and for who is refused",
    "agent/heads.py": "when an epoch began, for history",
    "agent/candidacy.py": "when a leader began, for history",
    "control/_change.py": "when the failures of a run were forgotten",
    "control/_checkpoints.py": "when checkpoints were adopted, for history",
    "agent/leadership.py": "when a plan was opened, for history",
    "worker/slot.py": "when a checkpoint was committed, for lists of them",
}
"""The only modules that read it, each for a text that people read and nothing compares."""


def _reads_wall_clock(source: Path) -> bool:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            if {"time", "time_ns"} & {alias.name for alias in node.names}:
                return True
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in WALL:
                return True
    return False


def test_only_texts_for_display_hold_the_time_of_day() -> None:
    product = (path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] != "testing")
    found = {str(path.relative_to(SOURCE)) for path in product if _reads_wall_clock(path)}
    assert found == set(FOR_PEOPLE)


def test_a_read_of_the_wall_clock_is_detected(tmp_path: Path) -> None:
    for text in ("import time\ntime.time()", "from time import time", "import datetime\ndatetime.datetime.now()"):
        (tmp_path / "module.py").write_text(text)
        assert _reads_wall_clock(tmp_path / "module.py"), text
    (tmp_path / "module.py").write_text("import time\ntime.monotonic()")
    assert not _reads_wall_clock(tmp_path / "module.py")
