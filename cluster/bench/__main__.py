"""`python -m cluster.bench NAME ...`: runs one benchmark from a bare checkout, without the command line's packages.

`quire bench` calls the same `run`. Each benchmark is a file of this folder with `main(argv) -> exit code`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def names() -> list[str]:
    """The benchmarks that there are: files of this folder whose text defines `main`."""
    found = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if "\ndef main(" in path.read_text():
            found.append(path.stem)
    return found


def run(argv: Sequence[str]) -> int:
    """Runs the benchmark that `argv` begins with and returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m cluster.bench NAME ...\nbenchmarks: {', '.join(names())}")
        return 0 if argv else 2
    name, rest = argv[0].replace("-", "_"), list(argv[1:])
    if name not in names():
        print(f"there is no benchmark named {argv[0]!r}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"cluster.bench.{name}").main(rest))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
