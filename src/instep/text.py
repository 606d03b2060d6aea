"""Makes text from etcd, which anybody may have written, safe for a terminal, a log and an error message. Pure.

Every place where text leaves a process uses it: the output of the command line, the records of the logger `instep`, and
the text of an `InstepError`.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
import unicodedata

MAX_LINE = 4000
"""Maximum characters of one line; a longer one is truncated."""

_PLAIN = re.compile(r"[ -~]*\Z")


def one_line(text: str) -> str:
    """The text on one line. Replaces line breaks and tabs by spaces. Shows terminal controls, and characters that hide
    or reorder text, as escapes such as `\\x1b`."""
    if _PLAIN.match(text):
        return text
    return "".join(_shown(char) for char in text)


def escaped_json(document: str) -> str:
    """The same JSON document, with characters that control a terminal as JSON escapes.

    `document` is a result of `json.dumps`, so its only line breaks are between values.
    """
    if document.isascii() and "\x7f" not in document:
        return document
    return "".join(json.dumps(char)[1:-1] if _is_hidden(char) and char != "\n" else char for char in document)


def counted(number: int, noun: str) -> str:
    """`1 rank`, `3 ranks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class OneLine(logging.Filter):
    """Makes each record one line. A traceback keeps its lines, each of them indented."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        cleaned = one_line(message)
        if len(cleaned) > MAX_LINE:
            cleaned = cleaned[: MAX_LINE - 1] + "…"
        if cleaned != message:
            record.msg, record.args = cleaned, None
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            lines = "".join(traceback.format_exception(*record.exc_info)).splitlines()
            record.exc_text = "\n".join(f"  {one_line(line)}" for line in lines)
        return True


def _shown(char: str) -> str:
    if char in "\t\n\v\f\r\x85\u2028\u2029":
        return " "
    if not _is_hidden(char):
        return char
    return ascii(char)[1:-1]


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
