"""What a person has chosen to see in `quire top`: which screen, in which order, which request. Changed by keys only.

Pure: keys in, a view out. `top.py` reads the keys, `top_picture.py` draws the view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MAP, TABLES, HELP = "map", "tables", "help"
# How requests are sorted, each in turn by the key s: by name, with what is compared; most first.
SORTS = ("state", "blocks", "tokens", "waited")
FIGURES = {"blocks": "blocks", "tokens": "output", "waited": "queue_s"}
KEYS: tuple[tuple[str, str], ...] = (
    ("up, down, k, j", "choose a request"),
    ("Enter", "the tables of the chosen request; Enter or Esc: back"),
    ("s", "sort requests by state, blocks, tokens, or how long they waited"),
    ("r", "colour blocks by request, or by state"),
    ("?, h", "this page; any key: back"),
    ("q, Ctrl-C", "leave"),
)
UP, DOWN, ENTER, ESCAPE = "up", "down", "enter", "escape"
SEQUENCES = {"\x1b[A": UP, "\x1bOA": UP, "k": UP, "\x1b[B": DOWN, "\x1bOB": DOWN, "j": DOWN}
SEQUENCES |= {"\r": ENTER, "\n": ENTER, "\x1b": ESCAPE}


@dataclass(frozen=True, slots=True)
class View:
    """`chosen`: the id of a request, or "" while none was chosen."""

    by_request: bool = False
    sort: str = SORTS[0]
    chosen: str = ""
    screen: str = MAP

    def press(self, typed: str, listed: Sequence[str]) -> View:
        """After a key; `listed` are the ids of requests as they are shown."""
        key = SEQUENCES.get(typed, typed)
        if self.screen == HELP or (self.screen == TABLES and key in (ENTER, ESCAPE)):
            return replace(self, screen=MAP) if key else self
        if key in ("?", "h"):
            return replace(self, screen=HELP)
        if key == "r":
            return replace(self, by_request=not self.by_request)
        if key == "s":
            return replace(self, sort=SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)])
        if key in (UP, DOWN) and listed:
            if self.chosen not in listed:
                return replace(self, chosen=listed[0])
            at = listed.index(self.chosen) + (1 if key == DOWN else -1)
            return replace(self, chosen=listed[min(max(at, 0), len(listed) - 1)])
        if key == ENTER and listed:
            return replace(self, chosen=self.chosen or listed[0], screen=TABLES)
        return self

    def ordered(self, requests: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those that are not queued, as they are listed."""
        if self.sort not in FIGURES:
            return sorted(requests, key=lambda one: (str(one["state"]), str(one["id"])))
        figure = FIGURES[self.sort]
        return sorted(requests, key=lambda one: (-float(one[figure]), str(one["id"])))
