"""The version of this package. Agents register it: a run says when its nodes run different ones."""

from typing import Final

VERSION: Final = "0.1.0"
