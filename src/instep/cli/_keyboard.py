"""The one key that a full-screen view listens for."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def key_pressed(keys: bytes) -> Iterator[asyncio.Event]:
    """An event that is set when one of `keys` is pressed; never, where stdin is no terminal. Inside a running loop."""
    pressed = asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        typed = os.read(descriptor, 64)
        if not typed or any(key in keys for key in typed):
            loop.remove_reader(descriptor)
            pressed.set()

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
