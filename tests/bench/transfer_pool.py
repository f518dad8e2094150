"""A host pool process for benchmarks, and the processor time of processes and threads as the kernel counts it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def host_pool(
    num_blocks: int, block_bytes: int, secret: str, fingerprint: str = "bench"
) -> Iterator[tuple[int, dict[str, object]]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "secret"
        file.touch(0o600)
        file.write_text(secret)
        command = [
            sys.executable,
            "-m",
            "worker.host_pool",
            "--name",
            "host",
            "--node",
            "bench",
            "--fingerprint",
            fingerprint,
        ]
        command += ["--size", str(num_blocks * block_bytes), "--block-bytes", str(block_bytes)]
        command += ["--secret-file", str(file), "--stop-with-input"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the host pool of the benchmark ended with {process.wait(10)}")
            yield process.pid, json.loads(line)
        finally:
            process.kill()
            process.communicate()


def processor_seconds(pids: list[int]) -> float:
    """Of all threads of these processes: the scheduler's own count, which is exact to the nanosecond."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue  # the thread ended meanwhile
    return total / 1e9


def delayed_seconds(thread: int) -> float:
    """How long all threads of this process but one were ready to run and had no processor."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            total += 0 if int(task.name) == thread else int((task / "schedstat").read_text().split()[1])
        except OSError:
            continue  # the thread ended meanwhile
    return total / 1e9


def thread_seconds(thread: int) -> tuple[float, float]:
    """How long a thread of this process has run, and how long it was ready to and had no processor."""
    ran, waited = (Path("/proc/self/task") / str(thread) / "schedstat").read_text().split()[:2]
    return int(ran) / 1e9, int(waited) / 1e9
