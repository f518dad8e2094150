"""Ctrl-C: the first one ends what runs, in order; a second one, while that is still ending, leaves at once.

The first is Python's `KeyboardInterrupt`, as everywhere. The second is heard by a thread of its own, because whatever
the first one waits for (a reader that does not read, a call into a library) keeps the main thread.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cluster.cli import exits

LINE = "error: interrupted"
DEALT_WITH = b"\0"  # among the numbers of signals
# What starts us (`timeout`, a container) may hand on the one that the terminal has sent to all: two so close are one.
ONE_S = 0.2
SHOW_CURSOR = "\x1b[?25h"


class _Watch:
    """Counts interrupts of this process that nobody has dealt with yet."""

    def __init__(self, writer: int) -> None:
        self.writer = writer
        self._terminal = _terminal()
        self._told = threading.Lock()
        self._heard = -ONE_S
        self._num_open = 0
        self.ends_in_order = False

    def listen(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as numbers:
            # One by one: what was dealt with came before what follows it.
            while came := numbers.read(1):
                if came == DEALT_WITH:
                    self._num_open = 0
                elif came[0] == signal.SIGINT and time.monotonic() - self._heard > ONE_S:
                    self._heard = time.monotonic()
                    self._num_open += 1
                    if self._num_open > 1 and not self.ends_in_order:
                        self._leave()

    def may_tell(self) -> bool:
        """Whether nobody has said yet that it was interrupted."""
        return self._told.acquire(blocking=False)

    def _leave(self) -> None:
        with suppress(Exception):
            if self._terminal is not None:
                import termios

                termios.tcsetattr(0, termios.TCSANOW, self._terminal)
            told = f"{LINE}\n" if self.may_tell() else ""
            os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}{told}".encode())
        os._exit(exits.INTERRUPTED)


_watch: _Watch | None = None


@contextmanager
def second_leaves() -> Iterator[None]:
    """Inside, a second Ctrl-C ends this process with `INTERRUPTED`. Does nothing outside of the main thread."""
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watch, before = _Watch(writer), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch.listen, args=(reader,), name="quire-interrupts", daemon=True).start()
    outer, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = outer
        signal.set_wakeup_fd(before)
        os.close(writer)


def tell() -> None:
    """Says that the command was interrupted, unless a second Ctrl-C says so just now."""
    if _watch is None or _watch.may_tell():
        print(LINE, file=sys.stderr)


def dealt_with() -> None:
    """What a Ctrl-C ended is over, and the command goes on: the next one is a first one again."""
    if _watch is not None:
        os.write(_watch.writer, DEALT_WITH)


def end_in_order() -> None:
    """For a command that has processes of its own: however often it is interrupted, it takes them away first."""
    if _watch is not None:
        _watch.ends_in_order = True


def _terminal() -> Any:
    """The settings of the terminal before anything changes them; None: there is none."""
    if sys.stdin is None or not os.isatty(0):
        return None
    import termios

    with suppress(termios.error):
        return termios.tcgetattr(0)
    return None
