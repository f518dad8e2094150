"""Several streams of text on a real pseudo-terminal and in a pipe."""

import fcntl
import io
import os
import re
import struct
import termios
import threading

from cluster.cli.streams import Streams

PIECES = [(1, "second ", None), (0, "first ", None), (1, "text", "stop"), (0, "text", "length")]


def test_in_a_pipe_each_text_comes_whole_and_in_order() -> None:
    out = io.StringIO()
    with Streams(["a", "b"], ["Go on: ", ""], out) as streams:
        for piece in PIECES:
            streams.add(*piece)
            if piece != PIECES[-1]:
                # The second is over first and waits for its turn.
                assert out.getvalue() == ""
    assert out.getvalue() == "[a]\nGo on: first text\n\n[b]\nsecond text\n\n"


def test_a_text_is_shown_as_soon_as_those_before_it_are_over() -> None:
    out = io.StringIO()
    with Streams(["a", "b"], ["", ""], out) as streams:
        streams.add(0, "one", "stop")
        assert out.getvalue() == "[a]\none\n\n"


def test_text_that_looks_like_markup_is_text() -> None:
    out = io.StringIO()
    with Streams(["[red]x[/red]"], ["[bold]"], out) as streams:
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
    with os.fdopen(slave, "w") as out, Streams(["[a]", "b"], ["", ""], out) as streams:
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
