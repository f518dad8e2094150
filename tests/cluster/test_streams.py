"""Several streams of text on a real pseudo-terminal and in a pipe."""

import fcntl
import io
import os
import re
import struct
import termios
import threading

import pytest

from cluster.cli.streams import ShownTexts
from cluster.errors import Unavailable

PIECES = [(1, "second ", None), (0, "first ", None), (1, "text", "stop"), (0, "text", "length")]


def test_in_a_pipe_the_first_that_is_not_over_streams_and_the_others_wait_for_their_turn() -> None:
    out = io.StringIO()
    seen = []
    with ShownTexts(["a", "b"], ["Go on: ", ""], out) as streams:
        for piece in PIECES:
            streams.add(*piece)
            seen.append(out.getvalue())
    first = "[a]\nGo on: first "
    assert seen == ["", first, first, first + "text\n\n[b]\nsecond text\n\n"]


def test_quiet_is_nothing_but_the_texts() -> None:
    out = io.StringIO()
    with ShownTexts(["a", "b"], ["Go on: ", ""], out, quiet=True) as streams:
        for piece in PIECES:
            streams.add(*piece)
    assert out.getvalue() == "Go on: first text\nsecond text\n"


def test_what_came_before_a_failure_is_kept() -> None:
    def fail(out: io.StringIO) -> None:
        with ShownTexts(["a", "b", "c", "d"], ["", "", "", "> "], out) as streams:
            streams.add(0, "one", "stop")
            streams.add(1, "half ")
            streams.add(3, "a third")
            raise Unavailable("gone")

    out = io.StringIO()
    with pytest.raises(Unavailable):
        fail(out)
    assert out.getvalue() == "[a]\none\n\n[b]\nhalf \n[d]\n> a third\n"


def test_a_text_is_shown_as_soon_as_those_before_it_are_over() -> None:
    out = io.StringIO()
    with ShownTexts(["a", "b"], ["", ""], out) as streams:
        streams.add(0, "one", "stop")
        assert out.getvalue() == "[a]\none\n\n"


def test_text_that_looks_like_markup_is_text() -> None:
    out = io.StringIO()
    with ShownTexts(["[red]x[/red]"], ["[bold]"], out) as streams:
        streams.add(0, " [/nonsense]", "stop")
    assert out.getvalue() == "[[red]x[/red]]\n[bold] [/nonsense]\n\n"


def test_on_a_terminal_all_run_at_once_and_are_whole_at_the_end() -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(master, 65536):
                shown.extend(chunk)
        except OSError:
            pass  # the other end is closed

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    long = " ".join(f"word{i}" for i in range(300))
    with os.fdopen(slave, "w") as out, ShownTexts(["[a]", "b"], ["", ""], out) as streams:
        streams.add(0, long, "length")
        streams.add(1, "short [/nonsense]", "stop")
    reader.join(timeout=10)
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    final = text[text.rindex("[a]") :]
    assert all(f"word{i}" in final for i in range(300))
    assert "short [/nonsense]" in final
    assert {"length", "stop"} <= set(re.findall(r"\w+", final))
    assert max(len(line.rstrip("\r")) for line in final.split("\n")) <= 80
