"""Shows several streams of text while they are written: all at once on a terminal, one after another in a pipe.

`quire generate` hands it pieces as they come. It knows nothing of engines, requests or tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

DRAWS_PER_S = 12


class ShownTexts:
    """Texts under titles. Use as a context manager; on leaving, every text is shown as far as it came."""

    def __init__(
        self, titles: Sequence[str], begins: Sequence[str], out: TextIO | None = None, *, quiet: bool = False
    ) -> None:
        """`begins[i]` is the text that stream i goes on from. `quiet`: nothing but the texts, in order."""
        self._titles = list(titles)
        self._begins = list(begins)
        self._written = [""] * len(titles)
        self._ends: list[str | None] = [None] * len(titles)
        self._out = out or sys.stdout
        self._quiet = quiet
        self._console = Console(file=self._out, highlight=False)
        self._live: Live | None = None
        # In a pipe: the stream whose turn it is, and how much of it was printed; -1: not even its title.
        self._turn, self._printed = 0, -1

    def __enter__(self) -> ShownTexts:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(
                console=self._console, refresh_per_second=DRAWS_PER_S, transient=True, get_renderable=self._draw
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, BrokenPipeError):
            return
        if self._live is not None:
            self._live.stop()
            for i in range(len(self._titles)):
                self._console.print(self._panel(i, self._whole(i)))
        elif kind is not None:
            # What came before something went wrong is kept.
            for i in range(self._turn, len(self._titles)):
                if self._written[i]:
                    self._turn, self._printed = i, self._printed if i == self._turn else -1
                    self._print_turn()
                    print(file=self._out, flush=True)

    def add(self, stream: int, piece: str, end: str | None = None) -> None:
        """More text of a stream; `end` says why it is over, once it is."""
        self._written[stream] += piece
        if end is not None:
            self._ends[stream] = end
        if self._live is None:
            self._print()

    def _print(self) -> None:
        """In a pipe the first that is not over is printed as it comes, and those behind it wait for their turn."""
        while self._turn < len(self._titles):
            if not self._written[self._turn] and self._ends[self._turn] is None:
                return
            self._print_turn()
            if self._ends[self._turn] is None:
                self._out.flush()
                return
            print("" if self._quiet else "\n", file=self._out, flush=True)
            self._turn, self._printed = self._turn + 1, -1

    def _print_turn(self) -> None:
        if self._printed < 0:
            title = "" if self._quiet else f"[{self._titles[self._turn]}]\n"
            self._out.write(f"{title}{self._begins[self._turn]}")
            self._printed = 0
        self._out.write(self._written[self._turn][self._printed :])
        self._printed = len(self._written[self._turn])

    def _whole(self, i: int) -> Text:
        return Text.assemble((self._begins[i], "dim"), self._written[i])

    def _panel(self, i: int, text: Text) -> Panel:
        end = self._ends[i]
        return Panel(
            text,
            title=Text(self._titles[i]),
            title_align="left",
            subtitle=Text(end) if end else None,
            subtitle_align="right",
            border_style="green" if end else "cyan",
        )

    def _draw(self) -> Group:
        """Every stream gets the same share of the screen and shows its latest lines there."""
        rows = max(1, (self._console.height - 1) // max(1, len(self._titles)) - 2)
        width = max(10, self._console.width - 4)
        panels = []
        for i in range(len(self._titles)):
            lines = self._whole(i).wrap(self._console, width)
            panels.append(self._panel(i, Text("\n").join(lines[-rows:])))
        return Group(*panels)
