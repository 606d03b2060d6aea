"""The version of this package. Agents register it, so that a run can say when its nodes run different ones."""

from typing import Final

VERSION: Final = "0.1.0"
