"""Writing a schedule to a file: all of it, or the file stays as it was."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from instep.cli._output import document, json_text, line, talk
from instep.errors import SettingsError
from instep.schedule import Schedule


def tell_export(schedule: Schedule, file: str, *, as_json: bool) -> None:
    """`-` is stdout. With `as_json` a file is written too, and stdout says which."""
    if file == "-":
        json_text(schedule.encode().rstrip("\n"))
        return
    _write(Path(file), schedule.encode())
    if as_json:
        facts = {"run": schedule.run, "file": file, "digest": schedule.digest, "changes": len(schedule.changes)}
        document(facts)
        return
    line(file)
    changes = "1 change" if len(schedule.changes) == 1 else f"{len(schedule.changes)} changes"
    talk(f"{changes} after the start values: instep.join(..., replay={file!r}) trains with them again")


def _write(path: Path, text: str) -> None:
    """Raises SettingsError when the file cannot be written."""
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a pipe, such as a shell's >(...)
            return
        if not path.parent.is_dir():
            raise SettingsError(f"the folder of {str(path)!r} is not there: make it first")
        descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(unfinished, 0o666 & ~_umask())
            os.replace(unfinished, path)
        except BaseException:
            os.unlink(unfinished)
            raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"the schedule cannot be written to {str(path)!r}: {reason}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
