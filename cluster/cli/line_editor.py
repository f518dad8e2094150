"""Lines that a person types: edited with the arrow keys, kept in a history file, several of them as one where asked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType

from cluster.cli import interrupts

HISTORY = 1_000
LEAVING = "(Ctrl-D or /quit leaves)"
FENCE = '"""'


class LineEditor:
    """Use as a context manager. Without readline in this Python lines are typed as the terminal has it."""

    def __init__(self, history: Path) -> None:
        self._history = history
        self._readline: ModuleType | None = None

    def __enter__(self) -> LineEditor:
        try:
            import readline
        except ImportError:
            return self
        self._readline = readline
        readline.set_history_length(HISTORY)
        with contextlib.suppress(OSError):
            readline.read_history_file(self._history)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._readline is None:
            return
        # What is typed is nobody else's business; a history that cannot be kept is no failure.
        with contextlib.suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600))
            self._readline.write_history_file(self._history)

    def lines(self, prompt: str) -> Iterator[str]:
        """What was typed, empty lines left out, until Ctrl-D. A Ctrl-C takes back what is being typed; at an empty
        prompt it says how to leave, and a second one leaves."""
        was_interrupted = False
        while True:
            try:
                text = self._whole(prompt).strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                interrupts.dealt_with()
                print()
                if self._readline is not None and self._readline.get_line_buffer().strip():
                    was_interrupted = False
                    continue
                if was_interrupted:
                    raise
                was_interrupted = True
                print(LEAVING)
                continue
            was_interrupted = False
            if text:
                yield text

    def _whole(self, prompt: str) -> str:
        line = input(prompt)
        if line.lstrip().startswith(FENCE):
            return self._fenced(line.lstrip()[len(FENCE) :])
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(". "))
        return "\n".join(lines)

    def _fenced(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(FENCE):
            lines.append(input(". "))
        lines[-1] = lines[-1].rstrip()[: -len(FENCE)]
        return "\n".join(lines).strip("\n")
