"""The command line: `instep`. Results go to stdout, messages to stderr; each error of Instep is one sentence.

Exit codes are documented in docs/howto/exit-codes.md, JSON documents in docs/howto/command-line.md.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """The console entry point. Ends the process with the documented exit code; unexpected errors keep their trace."""
    from instep.cli._app import run

    run()
