"""Ctrl-C as a person presses it: the first ends what runs in order, a second leaves at once."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from array import array
from pathlib import Path

import pytest

from cluster.cli import exits, interrupts
from tests.cluster.front_door import Door, at_the_door, slow
from tests.cluster.test_batch import command, start

ROOT = Path(__file__).parents[2]
PIPE_BYTES, MOST_AT_ONCE = 4096, 1024


def num_unread(pipe: int) -> int:
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def test_a_second_ctrl_c_leaves_though_nobody_reads_what_it_writes() -> None:
    """The first one ends the request, and then waits for the reader, to whom it owes what came."""

    async def story(door: Door) -> None:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        process = start([*command(door), "w" * 40, "--max-tokens", "1900", "--ignore-eos"], writer)
        os.close(writer)
        try:
            # What does not go in whole waits before the last byte is taken.
            await door.until(lambda: num_unread(reader) > PIPE_BYTES - MOST_AT_ONCE, 60.0)
            await asyncio.sleep(1.0)
            os.killpg(process.pid, signal.SIGINT)
            await door.settled(5.0)
            await asyncio.sleep(2.0)
            assert process.poll() is None, process.communicate()
            began = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            told = (await asyncio.to_thread(process.communicate, timeout=10))[1]
            assert time.monotonic() - began < 1.0
        finally:
            process.kill()
            os.close(reader)
        assert (process.returncode, told) == (130, "error: interrupted\n")

    at_the_door(story, shapes=[slow(0.004)], timeout_s=120)


GOES_ON = """
import time
from cluster.cli import interrupts
with interrupts.second_leaves():
    while True:
        try:
            print("waits", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            AFTER
"""


@pytest.mark.parametrize(("after", "num_heard"), [("pass", 1), ("interrupts.dealt_with()", 3)])
def test_one_that_was_dealt_with_does_not_count_and_two_at_once_are_one(after: str, num_heard: int) -> None:
    script = GOES_ON.replace("AFTER", after)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        for _ in range(num_heard):
            assert process.stdout.readline() == b"waits\n"
            # What runs it may hand on the terminal's once more.
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            time.sleep(2 * interrupts.ONE_S)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        if after == "pass":
            assert process.wait(10) == exits.INTERRUPTED
            assert process.communicate()[1] == b"error: interrupted\n"
        else:
            time.sleep(2 * interrupts.ONE_S)
            assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
