"""Where output leaves: results to stdout, messages to stderr; color only on a terminal that supports it.

Everything that is printed passes here, and here text that came from etcd is made fit for a terminal: one line, no
control characters, no markup. The streams take any text, whatever their encoding.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from instep.text import escaped_json, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PIPED_WIDTH = 160
"""Columns of a table that is not shown on a terminal: what reads it can take more than 80."""
_ERRORS = "instep-replace"
_INSTEAD = {"→": "->", "–": "-", "—": "-", "“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "·": "*"}
"""What is printed where an encoding lacks a character of ours; for any other it is a question mark."""


def take_any_text() -> None:
    """Have stdout and stderr print any text, also where their encoding lacks a character: a change that was written
    must not end with an error about its receipt."""
    codecs.register_error(_ERRORS, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def as_typed(argument: str) -> str:
    """An argument of the command line as UTF-8, where the locale made Python read it as something else."""
    try:
        return argument if argument.isprintable() else os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def facts_console() -> Console:
    """stdout. Text from etcd is never read as markup."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
    return _console()(markup=False, emoji=False, highlight=False, width=width)


def talk_console() -> Console:
    """stderr."""
    return _console()(stderr=True, markup=False, emoji=False, highlight=False)


@cache
def _console() -> type[Console]:
    """Built when it is needed first: rich takes longer to load than most commands to run."""
    from rich.console import Console
    from rich.text import Text

    class LineConsole(Console):
        """Each text that it renders is one line, without what a terminal would obey."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(one_line(text), **options)

        def render(self, renderable: Any, options: Any = None) -> Any:
            if isinstance(renderable, Text) and (cleaned := one_line(renderable.plain)) != renderable.plain:
                renderable = Text(
                    cleaned, style=renderable.style, overflow=renderable.overflow, no_wrap=renderable.no_wrap
                )
            return super().render(renderable, options)

    return LineConsole


def show(renderable: RenderableType) -> None:
    """A table or page of facts; lines end where their text ends when it is not shown on a terminal."""
    console = facts_console()
    if console.is_terminal:
        console.print(renderable)
    else:
        _write(plain(console, renderable))


def plain(console: Console, renderable: RenderableType) -> str:
    """What the console would print, without the spaces that fill its lines."""
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(text.rstrip() for text in capture.get().rstrip("\n").split("\n"))


def line(text: str) -> None:
    """One fact as one line of stdout, however long."""
    _write(one_line(text))


def talk(text: str) -> None:
    """One sentence to the person, on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)  # noqa: T201  # the one place where talk of one line leaves


def document(facts: Mapping[str, Any], *, compact: bool = False) -> None:
    """One JSON document on stdout; `compact` puts it on one line."""
    json_text(json.dumps(facts, ensure_ascii=False, allow_nan=False, indent=None if compact else 2))


def json_text(text: str) -> None:
    """A JSON document as text. What the stream's encoding lacks is written as a JSON escape."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = "".join(char if char.isascii() else json.dumps(char)[1:-1] for char in text)
    _write(escaped_json(text))
    sys.stdout.flush()


def _write(text: str) -> None:
    print(text)  # noqa: T201  # the one place where facts leave


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(char, "?") for char in missing), error.end
