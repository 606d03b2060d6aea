"""The layers of ARCHITECTURE.md, read from the imports themselves: they point down only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import instep

SOURCE = Path(instep.__file__).resolve().parent
ROOT = "the package itself"

LAYERS: dict[str, int] = {
    **dict.fromkeys(
        (
            "errors",
            "names",
            "outage",
            "scalar",
            "settings",
            "discovery",
            "command_kinds",
            "runtime",
            "schedule",
            "system_errors",
            "tasks",
            "text",
            "version",
            "wire",
        ),
        0,
    ),
    **dict.fromkeys(("etcd", "etcd_server"), 1),
    **dict.fromkeys(("connect", "recipes"), 2),
    **dict.fromkeys(("protocol", "tuner"), 3),
    "rendezvous": 4,
    **dict.fromkeys(("agent", "worker", "control"), 5),
    **dict.fromkeys(("torch", "cli", "demo", "local", "testing", "__main__", ROOT), 6),
}

SIDEWAYS: dict[tuple[str, str], str] = {
    ("__main__", "cli"): "it is the command line",
    ("demo", ROOT): "where the package lies",
}
"""The only imports of another package of the same layer, each with its reason."""

LATE: dict[tuple[str, str], str] = {
    ("cli", "demo"): "a command",
    ("cli", "local"): "a command",
    ("cli", ROOT): "its version",
}
"""The same, but only inside functions (or for types): loading the one must not load the other."""

PYDANTIC = frozenset({"pydantic", "pydantic_core", "typing_extensions"})
FOREIGN: dict[str, frozenset[str]] = {
    "etcd": frozenset({"grpc", "google"}),
    "protocol": PYDANTIC,
    "rendezvous": PYDANTIC,
    "tuner": PYDANTIC,
    "worker": PYDANTIC,
    "torch": frozenset({"torch"}),
    "cli": frozenset({"typer", "rich"}),
    "demo": frozenset({"torch", "numpy", "rich"}),
    "testing": frozenset({"pytest", "trustme"}),
}
"""What each package may import besides the standard library. No entry: nothing."""


@dataclass(frozen=True)
class Import:
    module: str
    """Full dotted name, relative imports resolved."""
    line: int
    late: bool
    """Inside a function, or for type checkers only."""


def imports_of(module: str, source: str, *, is_package: bool = False) -> Iterator[Import]:
    yield from _walk(ast.parse(source), module if is_package else module.rpartition(".")[0], late=False)


def _walk(node: ast.AST, package: str, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(name, child.lineno, late) for name in _from(child, package))
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_for_types(child)
            yield from _walk(child, package, late or inside)


def _from(node: ast.ImportFrom, package: str) -> set[str]:
    """The modules that a `from` import loads: submodules where the package itself is named."""
    up = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
    base = ".".join([*up, *([node.module] if node.module else [])])
    return {f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base for alias in node.names}


def _is_module(name: str) -> bool:
    first, *rest = name.split(".")
    path = SOURCE.joinpath(*rest)
    return first == "instep" and bool(rest) and (path.is_dir() or path.with_suffix(".py").is_file())


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def unit_of(module: str) -> str:
    """The package or top module that a dotted name belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ROOT


def imports_in(module: str, path: Path) -> Iterator[Import]:
    return imports_of(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")


def complaints(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of `module` (its full dotted name)."""
    found = [(item, _why_not(module, item)) for item in imports_of(module, source, is_package=is_package)]
    return [f"{module}, line {item.line}: {item.module}: {reason}" for item, reason in found if reason]


def _why_not(module: str, item: Import) -> str | None:
    if item.module.split(".")[0] == "instep":
        return _why_not_ours(module, item)
    top = item.module.split(".")[0]
    if top in sys.stdlib_module_names or top in FOREIGN.get(unit_of(module), frozenset()):
        return None
    return f"{unit_of(module)} may not import {top}"


def _why_not_ours(module: str, item: Import) -> str | None:
    ours, theirs = unit_of(module), unit_of(item.module)
    if theirs not in LAYERS:
        return "it is in no layer: give it one here and in ARCHITECTURE.md"
    if ours == theirs or LAYERS[ours] == LAYERS[theirs] == 0:  # layer 0 is one group of modules
        return None
    if ours == "worker" and LAYERS[theirs] > 0:
        return "worker needs layer 0 only"
    if LAYERS[theirs] < LAYERS[ours] or (ours, theirs) in SIDEWAYS:
        return None
    if (ours, theirs) in LATE:
        return None if item.late else "only inside a function"
    return f"layer {LAYERS[ours]} may not import {theirs} of layer {LAYERS[theirs]}"


def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(["instep", *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_only(module: str) -> None:
    path = MODULES[module]
    assert complaints(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py") == []


def test_every_module_is_in_a_layer() -> None:
    assert {unit_of(module) for module in MODULES} == set(LAYERS)


def test_production_code_does_not_use_the_test_tools() -> None:
    for module, path in MODULES.items():
        if not is_test_tool(module):
            assert not any(is_test_tool(item.module) for item in imports_in(module, path)), module


def is_test_tool(module: str) -> bool:
    return module == "instep.testing" or module.startswith("instep.testing.")


def test_every_exception_to_the_rule_is_in_use() -> None:
    used: set[tuple[str, str]] = set()
    for module, path in MODULES.items():
        for item in imports_in(module, path):
            if item.module.split(".")[0] == "instep":
                used.add((unit_of(module), unit_of(item.module)))
    assert {*SIDEWAYS, *LATE} <= used


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The largest groups of modules that each reach all others of the group by imports."""
    reach = {module: {module} for module in graph}
    for module in graph:
        waiting = [module]
        while waiting:
            news = graph[waiting.pop()] - reach[module]
            reach[module] |= news
            waiting += news
    found: list[set[str]] = []
    for module in graph:
        group = {other for other in reach[module] if module in reach[other]}
        if len(group) > 1 and group not in found:
            found.append(group)
    return found


def test_no_modules_import_each_other() -> None:
    """Imports inside functions and for type checkers count too: two modules that need each other are one."""
    graph = {
        module: {item.module for item in imports_in(module, path) if item.module in MODULES} - {module}
        for module, path in MODULES.items()
    }
    assert circles(graph) == []


def test_an_import_cycle_is_found() -> None:
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": set()}
    assert circles(graph) == [{"a", "b", "c"}]


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("instep.etcd._client", "from instep.protocol.keys import Keys", "layer 1 may not import protocol"),
        ("instep.protocol.node", "import instep.agent.node", "layer 3 may not import agent"),
        ("instep.agent.node", "from instep.worker.gate import Gate", "layer 5 may not import worker"),
        ("instep.agent.node", "from instep import worker", "layer 5 may not import worker"),
        ("instep.control._values", "def f():\n    from instep.cli import main", "layer 5 may not import cli"),
        ("instep.protocol.keys", "from ..agent.node import Node", "layer 3 may not import agent"),
        ("instep.recipes.queue", "from instep.protocol.keys import Keys", "layer 2 may not import protocol"),
        ("instep.protocol.leading", "from instep.rendezvous.keys import X", "layer 3 may not import rendezvous"),
        ("instep.errors", "from instep.etcd import Client", "layer 0 may not import etcd"),
        ("instep.etcd._client", "import instep", "layer 1 may not import the package itself"),
        ("instep.torch._optim.request", "from instep.testing import EtcdServer", "layer 6 may not import testing"),
        ("instep.testing._server", "from instep.local import start", "layer 6 may not import local"),
        ("instep.cli._admin", "from instep.demo import main", "only inside a function"),
        ("instep.local", "def start():\n    from instep.testing import EtcdServer", "layer 6 may not import testing"),
        ("instep.demo._scenario", "from instep.testing import EtcdServer", "layer 6 may not import testing"),
        ("instep.etcd_server.member", "from instep.etcd import Client", "layer 1 may not import etcd"),
        ("instep.worker.run", "from instep.protocol.schema import Schema", "worker needs layer 0 only"),
        ("instep.worker.run", "from instep.etcd import Client", "worker needs layer 0 only"),
        ("instep.worker.join", "import instep", "worker needs layer 0 only"),
        ("instep.worker.run", "import torch", "worker may not import torch"),
        ("instep.worker.run", "import grpc.aio", "worker may not import grpc"),
        ("instep.worker.run", "if TYPE_CHECKING:\n    import numpy", "worker may not import numpy"),
        ("instep.agent.node", "import grpc", "agent may not import grpc"),
        ("instep.protocol.keys", "from google.protobuf import message", "protocol may not import google"),
        ("instep.cli._change", "import torch.nn as nn", "cli may not import torch"),
        ("instep.wire", "import pydantic", "wire may not import pydantic"),
        ("instep.agent.node", "from instep.novelty import thing", "in no layer"),
    ],
)
def test_a_wrong_import_is_reported(module: str, source: str, reason: str) -> None:
    (complaint,) = complaints(module, source)
    assert reason in complaint


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "instep.torch._optim.request",
            "import torch.optim\nfrom .bound_param import BoundParam\nfrom instep.errors import BindError",
        ),
        ("instep.cli._admin", "def command():\n    from instep.demo import main"),
        ("instep.settings", "from instep import names\nimport instep.errors"),
    ],
)
def test_a_correct_import_is_not_reported(module: str, source: str) -> None:
    assert complaints(module, source) == []
