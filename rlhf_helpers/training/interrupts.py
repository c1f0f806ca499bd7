"""Ctrl-C and SIGTERM while a stage trains: it ends its step, writes a checkpoint, and stops."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Raised by a stage that was asked to stop, after its checkpoint; `status` is for the shell."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number  # 130 after Ctrl-C, 143 after SIGTERM


_asked: int | None = None  # the signal that asked for a stop


@contextmanager
def stop_after_step() -> Iterator[None]:
    """Let signals stop a stage after its step, the second one at once.

    Not under a launcher: its processes would stop at different steps, and wait for each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return
    before = {number: signal.signal(number, _ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _forget()


def _ask(number: int, _: FrameType | None) -> None:
    global _asked
    if _asked is not None:
        raise Stopped(number)
    _asked = number
    print("stopping after this step; once more stops at once", file=sys.stderr, flush=True)


def _forget() -> None:
    global _asked
    _asked = None


def is_asked_to_stop() -> bool:
    """Whether a stage should write a checkpoint after its step, and call `stop_if_asked`."""
    return _asked is not None


def stop_if_asked() -> None:
    """Raise Stopped where a signal has asked for it."""
    if _asked is not None:
        raise Stopped(_asked)
