"""The command line: `instep`. Facts go to stdout, talk to stderr, and every error of ours ends in one sentence.

Exit codes are documented in docs/howto/exit-codes.md, JSON documents in docs/howto/command-line.md.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """The console entry point. Ends the process with the documented exit code; unexpected errors keep their trace."""
    from instep.cli._app import run

    run()
