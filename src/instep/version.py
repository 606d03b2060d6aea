"""The version of this package. Agents register it, so a run can report nodes with different versions."""

from typing import Final

VERSION: Final = "0.1.0"
