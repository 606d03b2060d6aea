"""The command line as a person or a script meets it: a process with arguments, two streams and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0
COMMAND = [sys.executable, "-m", "instep"]


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(server_environment: Mapping[str, str], **more: str) -> dict[str, str]:
    """This process's environment without anything that says where etcd is, and then what is given."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("INSTEP_", "ETCDCTL_")) and name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    }
    return {**kept, **server_environment, **more}


def instep(*arguments: str | bytes, env: Mapping[str, str], cwd: Path | None = None) -> Ended:
    """Run `instep` to its end, within a minute."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=env, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)
