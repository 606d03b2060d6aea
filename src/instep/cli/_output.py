"""All output: results to stdout, messages to stderr; color only on a terminal that supports it.

Text from etcd is made safe for a terminal here: one line, no control characters, no markup. The streams accept any
text, whatever their encoding.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from instep.text import escaped_json, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PIPED_WIDTH = 160
"""Columns of a table that is not shown on a terminal: its reader can handle more than 80."""
_ERRORS = "instep-replace"
_INSTEAD = {"→": "->", "–": "-", "—": "-", "“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "·": "*"}
"""What is printed if an encoding lacks one of these characters; for any other it is a question mark."""


def take_any_text() -> None:
    """Let stdout and stderr print any text, even if their encoding lacks a character: a change that was written must
    not end with an error about its receipt."""
    codecs.register_error(_ERRORS, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def as_typed(argument: str) -> str:
    """An argument of the command line as UTF-8, even if the locale made Python decode it differently."""
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
    """Built on first use: rich takes longer to load than most commands to run."""
    from rich.console import Console
    from rich.text import Text

    class LineConsole(Console):
        """Renders each text on one line, without terminal controls."""

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
    """Print a table or page; without trailing spaces if stdout is not a terminal."""
    console = facts_console()
    if console.is_terminal:
        console.print(renderable)
    else:
        _write(plain(console, renderable))


def plain(console: Console, renderable: RenderableType) -> str:
    """What the console would print, without trailing spaces."""
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(text.rstrip() for text in capture.get().rstrip("\n").split("\n"))


def line(text: str) -> None:
    """Print one line to stdout, however long."""
    _write(one_line(text))


def talk(text: str) -> None:
    """Print one sentence for a person, to stderr."""
    print(one_line(text), file=sys.stderr, flush=True)  # noqa: T201  # the only place that writes messages


def document(facts: Mapping[str, Any], *, compact: bool = False) -> None:
    """Print one JSON document to stdout; `compact` puts it on one line."""
    json_text(json.dumps(facts, ensure_ascii=False, allow_nan=False, indent=None if compact else 2))


def json_text(text: str) -> None:
    """Print a JSON document. Characters that the stream's encoding lacks become JSON escapes."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = "".join(char if char.isascii() else json.dumps(char)[1:-1] for char in text)
    _write(escaped_json(text))
    sys.stdout.flush()


def local_time(at: str | None) -> str:
    """`11-23 05:30:27` in the reader's time zone; empty if the time is unknown."""
    try:
        return datetime.fromisoformat(at or "").astimezone().strftime("%m-%d %H:%M:%S")
    except (ValueError, OSError, OverflowError):
        return ""


def _write(text: str) -> None:
    print(text)  # noqa: T201  # the only place that writes results


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(char, "?") for char in missing), error.end
