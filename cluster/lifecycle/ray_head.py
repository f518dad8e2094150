"""The Ray head that `quire up` starts on this machine: starts it, names its processes, and ends every one of them.

Called by `launch.py` only. A head has a folder of its own under /tmp, and a process of Ray's belongs to it if its
command line or one of its open files names that folder: so what a crash left behind is found too, and nobody else's
process is touched. It knows nothing of models and never connects to Ray.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import Unavailable

START_S = 120.0
# Ray's processes end within a second of being asked; what has not by then is made to.
PATIENCE_S = 3.0
FOLDER = "/tmp/quire-"
ESSENTIAL = {"gcs_server", "raylet"}
PROGRAMS = ("python", "raylet", "gcs_server", "ray")


def new_folder() -> str:
    """Ray puts sockets into this folder, whose path must be short. Ray lets every user of the machine write there, so
    the folder above it is closed to all but us."""
    above = f"{FOLDER}{os.getuid()}-{secrets.token_hex(3)}"
    os.mkdir(above, 0o700)
    return f"{above}/ray"


class HeadStart:
    """`ray start` under way. It runs in a session of its own, so that a Ctrl-C ends it when we say so."""

    def __init__(self, folder: str, port: int, num_cpus: int, token: str) -> None:
        self.address = f"127.0.0.1:{port}"
        command = [
            sys.executable,
            "-m",
            "cluster.lifecycle.ray_start",
            "start",
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            f"--num-cpus={num_cpus}",
            f"--temp-dir={folder}",
            "--include-dashboard=false",
            # Nothing here asks Ray for more machines, and nobody reads the logs of actors from a driver.
            "--no-monitor",
            "--include-log-monitor=false",
            "--disable-usage-stats",
        ]
        # Ray starts workers at niceness 15: behind everything else on the machine, which is no place for who serves.
        environment = {"RAY_worker_niceness": "0", **os.environ, **token_variables(token)}
        environment["RAY_USAGE_STATS_ENABLED"] = "0"
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Returns once the head serves; Unavailable says why it does not."""
        try:
            told, _ = self._process.communicate(timeout=START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise Unavailable(f"ray start did not end within {START_S:g} s; see `ray start --head` by hand") from None
        if self._process.returncode:
            line = (told.strip().splitlines() or ["it said nothing"])[-1]
            raise Unavailable(f"ray start failed {how_it_ended(self._process.returncode)}: {line}")

    def abandon(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def token_variables(token: str) -> Mapping[str, str]:
    """What Ray has to find in the environment when it is imported: this token, or that it shall use the user's own.

    `ray start` asks for a token as soon as the user has one; who connects has to say that he shows it. Shown to a
    Ray that asks for none it does no harm.
    """
    if token:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    own = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return {"RAY_AUTH_MODE": "token"} if "RAY_AUTH_MODE" not in os.environ and own.is_file() else {}


def how_it_ended(code: int) -> str:
    """An exit status in words; a kill without a word is most often the kernel's, for want of memory."""
    if code >= 0:
        return f"with exit status {code}"
    name = signal.Signals(-code).name
    if -code != signal.SIGKILL:
        return f"by {name}"
    return f"by {name}, which is what the system does when memory runs out ({free_mib():,} MiB are free now)"


def free_mib() -> int:
    """Memory that processes can still have here."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


# -- processes


def processes_of(folder: str) -> list[int]:
    """The processes of the head with this folder: those whose command line or open files name it."""
    if not folder.startswith(FOLDER):
        return []
    return [pid for pid in _all_pids() if pid != os.getpid() and _names(pid, folder)]


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _names(pid: int, folder: str) -> bool:
    process = Path("/proc") / str(pid)
    try:
        # Somebody who reads a log of Ray's with an editor is left alone.
        if not (process / "exe").readlink().name.startswith(PROGRAMS):
            return False
        if f"{folder}/".encode() in (process / "cmdline").read_bytes().replace(b"\0", b"/"):
            return True
        return any(_target(link).startswith(f"{folder}/") for link in (process / "fd").iterdir())
    except OSError:
        # It has ended, or is somebody else's.
        return False


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def name_of(pid: int) -> str:
    """What a process is called, for people."""
    try:
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "process"
    first = Path(words[0].decode(errors="replace")).name
    scripts = [Path(word.decode(errors="replace")).stem for word in words[1:4] if word.endswith(b".py")]
    return scripts[0] if scripts else first


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def serves(folder: str) -> bool:
    """Whether the head with this folder has processes that make it one: without either of the two it is a wreck."""
    names = {name_of(pid) for pid in processes_of(folder) if alive(pid)}
    return names >= ESSENTIAL


def end(folder: str) -> list[int]:
    """Asks all processes of this head to end, makes those that do not, removes the folder. Returns what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + PATIENCE_S
        asked: set[int] = set()
        # Ray's processes start others while they end, so they are looked for again.
        while (found := [pid for pid in processes_of(folder) if alive(pid)]) and time.monotonic() < until:
            for pid in found:
                if pid not in asked:
                    asked.add(pid)
                    _signal(pid, number)
            time.sleep(0.05)
    if folder.startswith(FOLDER):
        shutil.rmtree(Path(folder).parent, ignore_errors=True)
    return [pid for pid in processes_of(folder) if alive(pid)]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
