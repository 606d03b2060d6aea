"""Hooks of the documentation site: pages from the repository's root, and a check that public names have docstrings."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "contributing/architecture.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "SECURITY.md": "security.md",
}
"""Files of the repository's root, with their place in the site."""
PUBLIC = {
    "instep": "instep.md",
    "instep.torch": "torch.md",
    "instep.etcd": "etcd.md",
    "instep.recipes": "recipes.md",
    "instep.testing": "testing.md",
    "instep.testing.checkers": "checkers.md",
}
"""The public modules, each with its page in docs/reference."""
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def on_pre_build(config: Any) -> None:
    """Fails if a public name has no docstring, or is not on the page of its module."""
    package = griffe.load("instep", search_paths=[ROOT / "src"], resolve_aliases=True)
    problems: set[str] = set()
    for name in PUBLIC:
        module = package[name.removeprefix("instep.")] if name != "instep" else package
        exports = [str(export) for export in module.exports or () if not str(export).startswith("_")]
        problems.update(problem for export in exports for problem in undocumented(module[export]))
        problems.update(omitted(name, exports))
    if problems:
        raise PluginError("; ".join(sorted(problems)))


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from the root of the repository."""
    for name, target in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=_relinked(text, name, target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points links that leave docs/ to the pages added above."""
    source = page.file.src_uri
    return markdown if source in PAGES.values() else _relinked(markdown, f"docs/{source}", source)


def _relinked(text: str, source: str, target: str) -> str:
    """`text` of the file `source` of the repository with the relative links of the page `target` of the site."""

    def relinked(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        place = PAGES.get(path, path.removeprefix("docs/"))
        return f"{match[1]}{posixpath.relpath(place, posixpath.dirname(target) or '.')}{match[3]}"

    return LINK.sub(relinked, text)


def omitted(module: str, exports: Sequence[str]) -> list[str]:
    """Public names that are not on the page of their module. A page of the module itself shows all of them."""
    page = (ROOT / "docs" / "reference" / PUBLIC[module]).read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: (\S+)", page, re.MULTILINE))
    names = {f"{module}.{export}" for export in exports} if module not in shown else set()
    return [f"{name} is not on docs/reference/{PUBLIC[module]}" for name in names - shown]


def undocumented(thing: Any) -> list[str]:
    """What has no docstring: a function, a class, or its public methods and properties."""
    thing = thing.final_target if thing.is_alias else thing
    below: list[str] = []
    if thing.is_class:
        members = [member for name, member in thing.members.items() if not name.startswith("_") and not member.is_alias]
        below = [problem for member in members for problem in undocumented(member)]
    elif not (thing.is_function or "property" in thing.labels):
        return []
    return below if thing.has_docstring else [f"{thing.path} has no docstring", *below]
