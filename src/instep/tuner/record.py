"""Samples as JSON lines: what `--record` writes and `--replay` reads. Pure.

The first line is a header with the version of the format. A replay decides again about every sample, so a team can try
its rules on the run of yesterday.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

from pydantic import TypeAdapter, ValidationError

from instep.errors import SettingsError
from instep.text import one_line
from instep.tuner.decide import decide
from instep.tuner.rules import Rules
from instep.tuner.sample import Sample
from instep.tuner.state import initial
from instep.tuner.verdict import Verdict

FORMAT: Final = 1
_NAME: Final = "instep_tuner_samples"
MAX_LINE_BYTES: Final = 16 * 1024 * 1024


@cache
def _adapter() -> TypeAdapter[Sample]:
    return TypeAdapter(Sample)


def encode_header(run: str) -> str:
    """The first line of a recording, without a line break."""
    return json.dumps({_NAME: FORMAT, "run": run})


def encode_sample(sample: Sample) -> str:
    """One line, without a line break. Fields that have their default value are left out."""
    return json.dumps(_adapter().dump_python(sample, exclude_defaults=True), separators=(",", ":"))


def decode_sample(text: str) -> Sample:
    """Raises ValueError with the reason."""
    if len(text) > MAX_LINE_BYTES:
        raise ValueError(f"it has {len(text)} characters; {MAX_LINE_BYTES} are the most")
    try:
        return _adapter().validate_json(text)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"][:1].lower() + detail["msg"][1:]
        raise ValueError(f"{where}: {message}" if where else message) from None


def read_samples(lines: Iterable[str]) -> Iterator[Sample]:
    """The samples of a recording; empty lines are ignored.

    Raises SettingsError, naming the line, for a line that is not a sample and for a recording of another version.
    """
    seen_header = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not seen_header:
            _check_header(line, number)
            seen_header = True
            continue
        try:
            yield decode_sample(line)
        except ValueError as error:
            raise SettingsError(
                f"recording, line {number}: not a sample: {one_line(str(error))}: delete the line, or record again"
            ) from None
    if not seen_header:
        raise SettingsError("the recording is empty: record one with 'instep tune --record FILE RUN'")


def replayed(
    samples: Iterable[Sample], rules: Rules | None = None, armed: tuple[str, ...] = ("all",)
) -> Iterator[Verdict]:
    """The verdict about each sample, in order. The run does not react to the actions of a replay."""
    state = initial(rules, armed)
    for sample in samples:
        state, verdict = decide(state, sample)
        yield verdict


def _check_header(line: str, number: int) -> None:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or _NAME not in header:
        raise SettingsError(
            f"recording, line {number}: not the header of a recording: give a file that 'instep tune --record' wrote"
        )
    if header[_NAME] != FORMAT:
        raise SettingsError(
            f"recording, line {number}: its format is {one_line(str(header[_NAME]))}, this program reads {FORMAT}: "
            "use the program that recorded it"
        )
