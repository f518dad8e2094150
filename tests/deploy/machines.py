"""Two machines for tests, of Linux namespaces: each has a network, processes, a name, /tmp and /dev/shm of its own.

They share nothing but the kernel, the programs and a cable, so that what works here only because both ends see one
/tmp, one loopback or one process table does not work. Needs root. What runs in a machine ends with it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
NETWORK = "10.77.0.0/24"
# What a machine may write to without the other or the test's own system seeing it.
OVERLAYS = ("/etc", "/opt", sys.prefix)
NEEDED = ("ip", "nft", "unshare", "nsenter", "mount")


def missing() -> str:
    """Why no machines can be made here; empty if they can."""
    if os.geteuid() != 0:
        return "only root makes namespaces"
    programs = [name for name in NEEDED if shutil.which(name) is None]
    return f"{', '.join(programs)} not installed" if programs else ""


class Machine:
    """One of them, from `boot` until `halt`."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.network = f"quire-{os.getpid()}-{name}"
        self._unshare: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def boot(self) -> None:
        _run("ip", "netns", "add", self.network)
        overlays = [
            f"mkdir -p /tmp/over/{number}/up /tmp/over/{number}/work && mount -t overlay overlay -o "
            f"lowerdir={path},upperdir=/tmp/over/{number}/up,workdir=/tmp/over/{number}/work {path}"
            for number, path in enumerate(OVERLAYS)
        ]
        # A checkout may lie in the /tmp that is hidden next.
        steps = [f"mount --bind {ROOT} /mnt", "mount -t tmpfs tmpfs /tmp", "mount -t tmpfs tmpfs /dev/shm", *overlays]
        steps += ["mkdir -p /opt/quire && mount --bind /mnt /opt/quire"]
        steps += [f"hostname {self.name}", "mkdir /tmp/home", "touch /tmp/booted", "exec sleep infinity"]
        apart = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        # In a session of its own: a Ctrl-C at the test leaves it to `halt`.
        self._unshare = subprocess.Popen(
            ["ip", "netns", "exec", self.network, *apart, "sh", "-ec", "\n".join(steps)],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 10
        while not (self._pid and Path("/proc", str(self._pid), "root", "tmp", "booted").exists()):
            assert time.monotonic() < until and self._unshare.poll() is None, f"{self.name} does not boot"
            children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
            self._pid = int(children[0]) if children else 0
            time.sleep(0.02)

    def halt(self) -> None:
        if self._unshare is not None:
            # The kernel ends all processes of the machine with its first one.
            if self._pid:
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
            self._unshare.wait()
        subprocess.run(["ip", "netns", "del", self.network], check=False, capture_output=True)

    def start(self, script: str, **more: str) -> subprocess.Popen[str]:
        """A script as somebody would type it who has just logged in, in the checkout."""
        environment = {
            "HOME": "/tmp/home",
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
            "PYTHONPATH": "/opt/quire",
            "QUIRE_VENV": sys.prefix,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "LANG": "C.UTF-8",
            **more,
        }
        words = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
        typed = f"cd /opt/quire && export {' '.join(words)} && {script}"
        return subprocess.Popen(
            ["nsenter", "--target", str(self._pid), "--all", "env", "-i", "bash", "-c", typed],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, timeout_s: float = 180.0, **more: str) -> str:
        """What it printed; AssertionError with all it said if it fails."""
        process = self.start(script, **more)
        try:
            told, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, f"{self.name}: {script}\n{told}{errors}"
        return told

    def processes(self, word: str) -> list[str]:
        """The command lines that hold this word."""
        lines = self.run(
            "for one in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$one 2>/dev/null && echo; done; true"
        ).splitlines()
        return [line for line in lines if word in line]


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Booted, with a cable between them."""
    machines = Machine("one", "10.77.0.1"), Machine("two", "10.77.0.2")
    try:
        for machine in machines:
            machine.boot()
        ends = [f"q{os.getpid() % 100_000}{machine.name[:3]}" for machine in machines]
        _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for machine, end in zip(machines, ends, strict=True):
            _run("ip", "link", "set", end, "netns", machine.network)
            for words in (f"addr add {machine.address}/24 dev {end}", f"link set {end} up", "link set lo up"):
                _run("ip", "-n", machine.network, *words.split())
        yield machines
    finally:
        for machine in machines:
            machine.halt()
