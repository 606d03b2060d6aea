"""The documents name modules, tests and commands that exist."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from instep.control import ChangeReceipt, HistoryEntry, RunStatus, RunSummary

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "instep"
DOCS = ROOT / "docs"
WITH_MODULES = [ROOT / "ARCHITECTURE.md", DOCS / "glossary.md"]
WITH_TESTS = [DOCS / "guarantees.md", DOCS / "protocol" / "README.md", *sorted((DOCS / "howto").glob("*.md"))]
NOT_PLAIN = re.compile(r"\b(anew|whoever|goes on|for ever|is told|mend(ed|s)?)\b")


@cache
def all_tests() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py")))


@pytest.mark.parametrize("page", WITH_MODULES, ids=lambda page: page.name)
def test_modules_with_a_folder_exist(page: Path) -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page.read_text(encoding="utf-8")))
    assert len(named) > 20
    assert {name for name in named if not any((base / name).is_file() for base in (SOURCE, ROOT))} == set()


@pytest.mark.parametrize("page", WITH_TESTS, ids=lambda page: page.name)
def test_tests_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"\btests/[a-z_0-9/]*[a-z_0-9](?:\.py)?", text))
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    names = set(re.findall(r"(?:::|`)(test_\w+)(?=`)", text))
    assert {name for name in names if f"def {name}(" not in all_tests()} == set()


def test_every_guarantee_names_a_test_or_is_a_limit() -> None:
    text = (DOCS / "guarantees.md").read_text(encoding="utf-8").partition("## Known limits")[0]
    guarantees = re.split(r"\n(?=### )", text)[1:]
    assert len(guarantees) > 40
    assert [part.splitlines()[0] for part in guarantees if "**Promise.**" in part and "**Test.**" not in part] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        if page.name != "bugs.md":
            named = re.findall(r"(?:`|^|\n)make ([a-z-]+)", page.read_text(encoding="utf-8"))
            assert {name for name in named if name not in targets} == set(), page.name


@pytest.mark.parametrize(
    ("section", "kind"),
    [("runs", RunSummary), ("status", RunStatus), ("set", ChangeReceipt), ("history", HistoryEntry)],
    ids=lambda item: item if isinstance(item, str) else item.__name__,
)
def test_every_key_of_a_json_document_is_described(section: str, kind: type[Any]) -> None:
    text = (DOCS / "howto" / "command-line.md").read_text(encoding="utf-8")
    part = text.partition(f"\n### {section}\n")[2].partition("\n### ")[0]
    described = set(re.findall(r"`([a-z_]+)`", part))
    shown = {field.name for field in fields(kind) if field.metadata.get("json", True)}
    assert shown - described == set()


def test_the_documents_are_in_plain_english() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    found = [f"{page.name}: {match[0]}" for page in pages for match in NOT_PLAIN.finditer(page.read_text("utf-8"))]
    assert found == []
