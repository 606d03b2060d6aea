"""Writes dist/instep.cdx.json: a bill of materials (CycloneDX 1.5) of Instep and its runtime dependencies.

`make sbom` runs it in the development environment and lists the versions installed there. torch and etcd are not
listed, because users install their own.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

TARGET = Path("dist") / "instep.cdx.json"


def required(package: Distribution) -> list[str]:
    """The names of its requirements without extras. Those for other platforms are dropped later: not installed."""
    texts = [text for text in package.requires or () if "extra ==" not in text.replace("'", '"').partition(";")[2]]
    return [re.split(r"[\s\[<>=!~;(]", text)[0] for text in texts]


def closure(name: str) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        try:
            package = distribution(waiting.pop())
        except PackageNotFoundError:
            continue
        canonical = re.sub(r"[-_.]+", "-", package.name).lower()
        if canonical not in found:
            found[canonical] = package
            waiting += required(package)
    return found


def component(name: str, package: Distribution, kind: str) -> dict[str, Any]:
    facts = package.metadata
    named = facts.get("License-Expression") or facts.get("License") or ""
    licenses = [{"license": {"name": named.strip().splitlines()[0]}}] if named.strip() else []
    purl = f"pkg:pypi/{name}@{package.version}"
    return {"type": kind, "bom-ref": purl, "name": name, "version": package.version, "purl": purl, "licenses": licenses}


def document() -> dict[str, Any]:
    found = closure("instep")
    refs = {name: f"pkg:pypi/{name}@{package.version}" for name, package in found.items()}
    needs = {name: {re.sub(r"[-_.]+", "-", other).lower() for other in required(found[name])} for name in found}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component("instep", found["instep"], "application")},
        "components": [component(name, found[name], "library") for name in sorted(found) if name != "instep"],
        "dependencies": [
            {"ref": refs[name], "dependsOn": sorted(refs[other] for other in needs[name] if other in refs)}
            for name in sorted(found)
        ],
    }


def main() -> int:
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(document(), indent=1) + "\n", encoding="utf-8")
    print(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
