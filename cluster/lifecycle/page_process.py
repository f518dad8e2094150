"""The page's process: `quire up` starts it behind the cluster, `quire down` ends it. It is `quire page`, left running.

A cluster serves without it: what goes wrong here is said in a line, and ends nothing.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.lifecycle.ports import HAS_HTTP
from cluster.lifecycle.running import Running

FIRST_PORT = 8001
START_S = 20.0
END_S = 5.0


def start_page(running: Running, port: int | None, say: Callable[[str], None]) -> None:
    """`port`: 0: none; None: the first that is free from 8001 on. Says where it is, with the key."""
    if port == 0 or not HAS_HTTP:
        return
    command = [sys.executable, "-m", "cluster.cli", "page", "--port", str(port or FIRST_PORT)]
    errors = Path(str(running.settings["log_dir"])) / "page.log"
    with errors.open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    running.page_pid = child.pid
    running.save()
    assert child.stdout is not None
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        said = child.stdout.readline() if ready.select(START_S) else ""
    child.stdout.close()
    if said.startswith("http"):
        say(f"page {said.split()[0]}")
    else:
        say(f"there is no page: see {errors}; `quire page` starts one")
        end_page(running)


def end_page(running: Running) -> list[str]:
    """What is left of it: nothing, or its process."""
    pid, until = running.page_pid, time.monotonic() + END_S
    for number in (signal.SIGTERM, signal.SIGKILL):
        if pid and _is_page(pid):
            os.kill(pid, number)
        while pid and _is_page(pid) and time.monotonic() < until:
            time.sleep(0.02)
    return [f"process {pid} (the page)"] if pid and _is_page(pid) else []


def _is_page(pid: int) -> bool:
    """It may have ended, and its number be another's."""
    folder = Path("/proc") / str(pid)
    try:
        has_ended = (folder / "stat").read_text().rpartition(") ")[2][0] == "Z"
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return not has_ended and b"cluster.cli" in words and b"page" in words
