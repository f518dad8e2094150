"""Runs one engine in whatever Python starts this file: `quire bench peers` starts it in each virtual environment.

It reads a job (JSON) and writes an answer; nothing of Quire is imported but the adapter's own file, and no package but
what that needs. An adapter is a file beside this one with a function `NAME(job) -> run`, where `run(prompts, wanted)`
returns the tokens of each prompt, and for each of them the seconds since the call at which it was there; or it returns
the address of a server that it started. A package that is missing is an ImportError there, which is answered by name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

CLEAR_REFS, PEAK_RESET = Path("/proc/self/clear_refs"), "5"


def main(job_file: str, answer_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    # Siblings of this file must not stand for packages of the same name.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent.resolve()]
    try:
        answer = _measured(job)
    except ImportError as error:
        answer = {"missing": str(error)}
    Path(answer_file).write_text(json.dumps(answer))
    sys.stdout.flush()
    # Engines leave threads behind that would be waited for.
    os._exit(0)


def _measured(job: dict[str, Any]) -> dict[str, Any]:
    adapter = _adapter(job["file"])
    run = getattr(adapter, job["function"])(job)
    if isinstance(run, str):
        run = _adapter("of_server").server({**job, "server": run})
    # Kernels are compiled and threads are up before anything is timed.
    run(*job["warm"])
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text(PEAK_RESET)
    before, began = _processor_s(), time.perf_counter()
    outputs, times = run(job["prompts"], job["wanted"])
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "processor_s": _processor_s() - before,
        "peak_bytes": _peak_bytes(),
        "version": adapter.version(job),
        "outputs": outputs,
        "times": times,
    }


def _adapter(name: str) -> Any:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"bench_engine_{name}", path)
    assert spec is not None and spec.loader is not None
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    return adapter


def _processor_s() -> float:
    """Of this process and of those children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_bytes() -> int:
    try:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
