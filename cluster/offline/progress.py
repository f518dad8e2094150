"""A progress bar for long offline work: requests done and tokens per second, on a terminal and nowhere else.

The embedded engine updates it once per turn; it draws nothing before the work has taken two seconds, and at most ten
times a second.
"""

from __future__ import annotations

import sys
import time
from typing import Any

SHOW_AFTER_S = 2.0
DRAW_EVERY_S = 0.1


class Progress:
    """Follows one call of `generate`. Use as a context manager, so that the terminal is left clean."""

    def __init__(self, num_requests: int, *, wanted: bool) -> None:
        self._num_requests = num_requests
        self._wanted = wanted and num_requests > 0 and sys.stderr.isatty()
        self._began = self._drawn = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, num_done: int, num_tokens: int) -> None:
        """So many requests are done, and so many tokens were written since the beginning."""
        if not self._wanted:
            return
        now = time.monotonic()
        if now - self._drawn < DRAW_EVERY_S or now - self._began < SHOW_AFTER_S:
            return
        self._drawn = now
        if self._bar is None:
            self._start()
        rate = num_tokens / (now - self._began)
        self._bar.update(self._task, completed=num_done, rate=f"{rate:,.0f} tokens/s")

    def _start(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("requests"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("requests", total=self._num_requests, rate="")
        self._bar.start()
