"""Where output goes: facts to stdout, talk to stderr; colour only on a terminal that wants it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PIPED_WIDTH = 160
"""Columns of a table that is not shown on a terminal: what reads it can take more than 80."""


def facts_console() -> Console:
    """stdout. Text from etcd is never read as markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
    return Console(markup=False, emoji=False, highlight=False, width=width)


def talk_console() -> Console:
    """stderr."""
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def show(renderable: RenderableType) -> None:
    """A table or page of facts; lines end where their text ends when it is not shown on a terminal."""
    console = facts_console()
    if console.is_terminal:
        console.print(renderable)
    else:
        line(plain(console, renderable))


def plain(console: Console, renderable: RenderableType) -> str:
    """What the console would print, without the spaces that fill its lines."""
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(text.rstrip() for text in capture.get().rstrip("\n").split("\n"))


def line(text: str) -> None:
    """One fact as one line of stdout, however long."""
    print(text)  # noqa: T201  # the one place where facts of one line leave


def talk(text: str) -> None:
    """One sentence to the person, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # the one place where talk of one line leaves


def sentence(text: str) -> str:
    """The text on one line, without what a terminal would obey: it may quote what anyone wrote."""
    return "".join(char for char in " ".join(text.split()) if char.isprintable())


def document(facts: Mapping[str, Any], *, compact: bool = False) -> None:
    """One JSON document on stdout; `compact` puts it on one line."""
    line(json.dumps(facts, ensure_ascii=False, indent=None if compact else 2))
    sys.stdout.flush()
